# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Which devices the launcher takes."""

import importlib.machinery
import importlib.util
import pathlib
import tempfile
import unittest
from types import ModuleType
from unittest import mock

from kit import SCRIPTS

ADDRESS = "0000:01:00.0"


def load() -> ModuleType:
    """The launcher, whose name is no module's."""
    loader = importlib.machinery.SourceFileLoader("run_vm", str(SCRIPTS / "run-vm"))
    spec = importlib.util.spec_from_loader("run_vm", loader)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict("sys.modules", run_vm=module):
        loader.exec_module(module)
    return module


class DeviceTest(unittest.TestCase):
    def setUp(self):
        self.launcher = load()
        self.functions = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.enterContext(mock.patch.object(self.launcher, "FUNCTIONS", self.functions))
        self.opened = self.enterContext(mock.patch.object(self.launcher, "open_file", return_value=7))

    def function(self, name: str | None, iommu: bool) -> None:
        """A function of this machine, with the name that VFIO has for it."""
        function = self.functions / ADDRESS
        function.mkdir()
        if name:
            (function / "vfio-dev" / name).mkdir(parents=True)
        if iommu:
            (function / "iommu").symlink_to(self.functions)

    def open(self) -> int:
        return self.launcher.open_vfio(self.launcher.parse_device(ADDRESS, 0))

    def refused(self, reason: str) -> None:
        with self.assertRaisesRegex(self.launcher.Refused, reason):
            self.open()
        self.opened.assert_not_called()

    def test_device_behind_an_iommu_is_opened(self):
        self.function("vfio3", iommu=True)
        self.assertEqual(self.open(), 7)
        self.opened.assert_called_once_with(pathlib.Path("/dev/vfio/devices/vfio3"))

    def test_device_that_vfio_does_not_have_is_refused_with_what_to_do(self):
        self.function(None, iommu=True)
        self.refused("has the driver none: give it to vfio-pci")

    def test_device_without_an_iommu_is_refused_with_the_reason(self):
        """By its name, as Linux 7.3 has it, or because no IOMMU translates it."""
        for name, iommu in (("noiommu-vfio0", False), ("noiommu-vfio0", True), ("vfio0", False)):
            with self.subTest(name=name, iommu=iommu), tempfile.TemporaryDirectory() as directory:
                self.functions = pathlib.Path(directory)
                with mock.patch.object(self.launcher, "FUNCTIONS", self.functions):
                    self.function(name, iommu)
                    self.refused("no IOMMU is in front of it")


if __name__ == "__main__":
    unittest.main()
