# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libvirt goes on as it was, with our package installed."""

import select
import shutil
import subprocess
import time
import unittest

from kit import ROOT, SystemTest, installed

# libvirt looks into each of these for descriptors of back-ends.
DESCRIPTORS = ("usr/share/qemu/vhost-user", "etc/qemu/vhost-user")
EXAMPLE = ROOT / "share" / "examples" / "50-vhost-device-iommu.json"

DOMAIN = """
<domain type='qemu'>
  <name>guest</name>
  <memory unit='MiB'>64</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <filesystem type='mount'><driver type='virtiofs'/><source dir='/state'/><target dir='share'/></filesystem>
    <memballoon model='none'/>
  </devices>
</domain>
"""
# No daemon beside it; everything as the user that it has here.
CONFIGURATION = 'stdio_handler = "file"\nnamespaces = []\nuser = "root"\ngroup = "root"\n'

STARTS_VIRTIOFSD = "Starting external device: virtiofsd"
UNKNOWN = "unknown vhost-user type: 'iommu'"
SECONDS = 120.0


class LibvirtTest(SystemTest):
    """A domain that shares a directory by virtiofs, which libvirt finds a back-end for among the descriptors."""

    def setUp(self) -> None:
        super().setUp()
        (self.state / "domain.xml").write_text(DOMAIN)
        (self.state / "libvirt" / "etc").mkdir(parents=True)
        (self.state / "libvirt" / "etc" / "qemu.conf").write_text(CONFIGURATION)

    def start_domain(self) -> str:
        """Starts the domain, until libvirt has started its virtiofsd or has given up: all that libvirt has said."""
        log = self.state / "libvirt" / "log" / "qemu" / "guest.log"
        with (self.state / "said").open("w") as said:
            command = ("virt-qemu-run", "--verbose", "--root=/state/libvirt", "/state/domain.xml")
            process = self.start(*command, stdout=said, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and STARTS_VIRTIOFSD in log.read_text():
                break
            select.select([], [], [], 0.05)
        process.kill()
        process.wait()
        texts = [path.read_text() for path in (self.state / "said", log) if path.exists()]
        return "".join(texts)

    def test_a_domain_with_virtiofs_starts_with_our_package_installed(self):
        self.assertIn(STARTS_VIRTIOFSD, self.start_domain())

    def test_the_example_of_a_descriptor_where_libvirt_looks_keeps_that_domain_from_starting(self):
        # If this fails with a newer libvirt, the warnings can go.
        directory = self.ours / DESCRIPTORS[0]
        directory.mkdir(parents=True)
        shutil.copy(EXAMPLE, directory)
        said = self.start_domain()
        self.assertIn(UNKNOWN, said)
        self.assertNotIn(STARTS_VIRTIOFSD, said)


class DescriptorTest(unittest.TestCase):
    """The descriptor is an example."""

    def test_a_package_installs_it_where_nobody_looks_for_it(self):
        where = [name for name in installed() if name.endswith(EXAMPLE.name)]
        self.assertEqual(where, [f"usr/share/doc/vhost-device-iommu/examples/{EXAMPLE.name}"])
        self.assertFalse([name for name in installed() if name.startswith(DESCRIPTORS)])


if __name__ == "__main__":
    unittest.main()
