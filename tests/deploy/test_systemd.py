# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The units, as systemd reads them, and the examples beside them."""

import re
import shutil
import unittest

from kit import ROOT, SystemTest

EXAMPLES = ROOT / "share" / "examples"
SERVICE, SOCKET = "vhost-device-iommu@guest.service", "vhost-device-iommu@guest.socket"
# Of ten; 0 is a service that can do nothing.
MOST_EXPOSED, MOST_EXPOSED_WITH_DEVICES = 0.6, 1.0


class UnitTest(SystemTest):
    """The units of the package, installed."""

    def use_devices(self) -> None:
        """Installs the drop-in for devices, and the group that it names."""
        directory = self.ours / "etc" / "systemd" / "system" / f"{SERVICE}.d"
        directory.mkdir(parents=True)
        shutil.copy(EXAMPLES / "devices.conf", directory)

    def verify(self) -> None:
        # A key that systemd does not know is only an error with this option.
        done = self.run_in("systemd-analyze", "verify", "--recursive-errors=yes", "--man=no", SERVICE, SOCKET)
        self.assertEqual((done.returncode, done.stdout), (0, ""))

    def exposure(self) -> float:
        done = self.run_in("systemd-analyze", "security", "--offline=true", "--no-pager", SERVICE)
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
        self.assertIsNotNone(found, done.stdout)
        return float(found[1])

    def test_systemd_has_nothing_to_say_about_the_units(self):
        self.verify()

    def test_systemd_has_nothing_to_say_about_the_units_with_devices(self):
        self.use_devices()
        self.verify()

    def test_an_unknown_key_would_be_found(self):
        unit = self.ours / "usr" / "lib" / "systemd" / "system" / "vhost-device-iommu@.service"
        unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSytem="))
        done = self.run_in("systemd-analyze", "verify", "--recursive-errors=yes", "--man=no", SERVICE)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("ProtectSytem", done.stdout)

    def test_the_service_is_locked_up(self):
        self.assertLessEqual(self.exposure(), MOST_EXPOSED)

    def test_the_service_with_devices_is_locked_up(self):
        self.use_devices()
        self.assertLessEqual(self.exposure(), MOST_EXPOSED_WITH_DEVICES)


class ExamplesTest(SystemTest):
    """What an administrator copies."""

    def test_the_group_of_the_examples_is_made(self):
        (self.state / "example.conf").write_text((EXAMPLES / "sysusers.conf").read_text())
        done = self.run_in("sh", "-c", "systemd-sysusers /state/example.conf && cat /etc/group >/state/group")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex((self.state / "group").read_text(), r"(?m)^vhost-device-iommu:x:\d+:$")

    def test_udev_understands_the_rules(self):
        (self.state / "70-example.rules").write_text((EXAMPLES / "70-vhost-device-iommu.rules").read_text())
        script = "systemd-sysusers {0}/sysusers.conf && udevadm verify --resolve-names=early /state/70-example.rules"
        done = self.run_in("sh", "-c", script.format("/usr/share/doc/vhost-device-iommu/examples"))
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("Success: 1", done.stdout)


if __name__ == "__main__":
    unittest.main()
