# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The kernel's own tests of VFIO and iommufd, in a guest with the stock driver, over a software function.

Their driver for the function's engines is guest/linux/selftests/fault_engine.c.
"""

import os
import re
from collections.abc import Iterable

from bases.testcase import FunctionalTest
from lab_kit.selftest import VFIO_TESTS
from lab_kit.vm import lab
from lab_kit.vm.control import Control
from lab_kit.vm.guest import PATIENCE, Guest, GuestError
from lab_kit.vm.machine import ENDPOINTS

FUNCTION = "00:07.0"

# The tests of drivers pin 1 GiB and 2 MiB, in huge pages (guest/linux/selftests/lab.c).
MEMORY = "2G"
HUGE_PAGES = "hugepagesz=2M hugepages=513"
# Those of mappings skip what they do not find: pages of 2 MiB and of 1 GiB. Of those there are two above 4 GiB.
LARGE_MEMORY = "4G"
LARGER_PAGES = "hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=2"

# The interfaces that the tests run over: containers of VFIO, those that iommufd stands in for, and iommufd itself.
MODES = ("vfio_type1_iommu", "vfio_type1v2_iommu", "iommufd_compat_type1", "iommufd_compat_type1v2", "iommufd")

# How many accesses to addresses that are not mapped each of a driver's tests makes. It is one for a copy, as the engine
# that has it stops there.
DRIVER_TESTS = {
    "init_remove": 0,
    "memcpy_success": 0,
    "memcpy_from_unmapped_iova": 1,
    "memcpy_to_unmapped_iova": 1,
    "send_msi": 0,
    "mix_and_match": 10,
    "memcpy_storm": 0,
}

# Over the oldest interface iommufd maps pages of 4 KiB alone: 262,144 MAP requests for a test. A default run has this one.
FEW_DRIVER_TESTS = ("memcpy_success",)
EVERYTHING = bool(os.environ.get("LAB_EXHAUSTIVE"))

# Beside our IOMMU this one remaps interrupts, and translates nothing: without it Linux has one message of MSI on x86.
REMAPPING = ("-device", "intel-iommu,intremap=on,dma-translation=off")


class Selftest(FunctionalTest):
    """Starts a guest with the programs and a function, and runs them."""

    def setUp(self) -> None:
        super().setUp()
        try:
            self.programs = tuple(lab.vfio_selftests() / test for test in VFIO_TESTS)
        except lab.Missing as missing:
            self.skipTest(str(missing))

    def start_function(
        self, huge_pages: str = HUGE_PAGES, memory: str = MEMORY, extra: tuple[str, ...] = ()
    ) -> tuple[Guest, Control]:
        """A guest whose function has the driver vfio-pci."""
        path = self.directory / "function.sock"
        backend = self.start_backend(endpoints=(*ENDPOINTS, f"{FUNCTION},soft={path}"))
        machine = self.start_machine(
            backend,
            f"vfio_iommu_type1.allow_unsafe_interrupts=1 {huge_pages}",
            functions={FUNCTION: path},
            programs=self.programs,
            memory=memory,
            extra=extra,
        )
        guest = machine.guest
        for module in ("virtio_iommu", "vfio_pci", "vfio_iommu_type1"):
            guest.load(module)
        guest.run(f"bind {FUNCTION} vfio-pci")
        return guest, backend.control

    def check(self, guest: Guest, program: str, expected: set[str]) -> None:
        """Runs a program, and asserts that it has these tests and no others, and that each has passed."""
        lines: list[str] = []
        try:
            status = guest.follow(f"run /{program} 0000:{FUNCTION}", lines.append, timeout=900 * PATIENCE)
        except GuestError as error:
            status = str(error)
        text = "\n".join(lines)
        self.assertEqual(re.findall(r"^not ok .*$", text, re.M), [], text)
        # One that was skipped has more on its line.
        self.assertEqual(set(re.findall(r"^ok \d+ (.*)$", text, re.M)), expected, text)
        self.assertEqual(re.findall(r"^1\.\.(\d+)$", text, re.M), [str(len(expected))], text)
        self.assertEqual(status, "0", text)


class VfioDriverTest(Selftest):
    """Copies by the function's engines, and its interrupts: 35 tests, 7 over each interface."""

    def check_driver(self, mode: str, tests: Iterable[str] = DRIVER_TESTS) -> None:
        """A driver's tests, over one interface."""
        guest, control = self.start_function()
        left_out = "".join(f" -T {test}" for test in DRIVER_TESTS if test not in tests)
        expected = {f"vfio_pci_driver_test.{mode}.{test}" for test in tests}
        self.check(guest, f"vfio_pci_driver_test{left_out} -v {mode}", expected)
        counters = control.counters()
        faults = counters["fault_reports"] + counters["fault_reports_dropped"]
        self.assertEqual(faults, sum(DRIVER_TESTS[test] for test in tests))
        self.assert_clean(control)

    def test_the_drivers_tests_pass_over_a_type1_container(self):
        self.check_driver("vfio_type1_iommu")

    def test_the_drivers_tests_pass_over_a_type1v2_container(self):
        self.check_driver("vfio_type1v2_iommu")

    def test_the_drivers_tests_pass_over_a_type1_container_of_iommufd(self):
        self.check_driver("iommufd_compat_type1", DRIVER_TESTS if EVERYTHING else FEW_DRIVER_TESTS)

    def test_the_drivers_tests_pass_over_a_type1v2_container_of_iommufd(self):
        self.check_driver("iommufd_compat_type1v2")

    def test_the_drivers_tests_pass_over_iommufd(self):
        self.check_driver("iommufd")


class VfioMappingTest(Selftest):
    """Devices, mappings, and the set-up of iommufd."""

    def test_the_tests_of_devices_interrupts_and_mappings_pass(self):
        guest, control = self.start_function(LARGER_PAGES, LARGE_MEMORY, REMAPPING)
        setup = (
            "bind", "get_info_without_bind_fails", "bind_bad_iommufd_fails", "repeated_bind_fails", "attach_detatch_pt",
            "attach_invalid_pt_fails",
        )  # fmt: skip
        self.check(guest, "vfio_iommufd_setup_test", {f"vfio_cdev.{test}" for test in setup})
        device = {f"vfio_pci_device_test.{test}" for test in ("config_space_read_write", "validate_bars", "reset")}
        interrupts = {f"vfio_pci_irq_test.{kind}.enable_trigger_disable" for kind in ("msi", "msix")}
        self.check(guest, "vfio_pci_device_test", device | interrupts)
        limits = {
            f"vfio_dma_map_limit_test.{mode}.{test}"
            for mode in MODES
            for test in ("unmap_range", "unmap_all", "overflow")
        }
        mappings = {
            f"vfio_dma_mapping_test.{mode}_{kind}.dma_map_unmap"
            for mode in MODES
            for kind in ("anonymous", "anonymous_hugetlb_2mb", "anonymous_hugetlb_1gb")
        }
        self.check(guest, "vfio_dma_mapping_test", limits | mappings)
        bars = {
            f"vfio_dma_mapping_mmio_test.{mode}.{test}"
            for mode in MODES
            for test in ("map_full_bar", "map_partial_bar", "map_bar_misaligned")
        }
        self.check(guest, "vfio_dma_mapping_mmio_test", bars)
        self.assert_clean(control)


if __name__ == "__main__":
    FunctionalTest.main()
