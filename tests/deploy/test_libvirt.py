# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""libvirt goes on as it was, with our package installed."""

import json
import pathlib
import re
import select
import shutil
import subprocess
import time
import unittest
from collections.abc import Callable

from kit import ROOT, SystemTest, installed
from lab_kit.vm import lab

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


class DocumentedDomainTest(SystemTest):
    """The domain of docs/deploy.md, with what a page leaves out."""

    def setUp(self) -> None:
        try:
            [qemu] = lab.qemu()
        except lab.Missing as missing:
            self.skipTest(str(missing))
        directory = pathlib.Path(qemu).parent
        if not (directory / "root").is_dir():
            self.skipTest(f"{qemu} is not of the lab's cache: unset LAB_QEMU")
        self.bound = (str(directory),)
        super().setUp()
        # Its own modules, and not those of the older QEMU there.
        wrapper = self.state / "qemu"
        modules = directory / "root" / "usr" / "lib" / "x86_64-linux-gnu" / "qemu"
        wrapper.write_text(f'#!/bin/sh\nQEMU_MODULE_DIR={modules} exec {qemu} "$@"\n')
        wrapper.chmod(0o755)

    def blocks(self, language: str) -> list[str]:
        """The blocks of the page in a language, with the test's directory for those of a host."""
        page = (ROOT / "docs" / "deploy.md").read_text()
        blocks = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
        directories = r"/(?:run|etc)/vhost-device-iommu/"
        return [re.sub(directories, "/state/", block) for block in blocks]

    def test_the_domain_starts_and_its_qemu_connects(self):
        [xml] = self.blocks("xml")
        [viot] = [line for block in self.blocks("sh") for line in block.splitlines() if " viot " in line]
        for old, new in (
            ("type='kvm'", "type='qemu'"),
            ("<memoryBacking>", "<name>guest</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><memoryBacking>"),
            (
                "<qemu:commandline>",
                f"<devices><emulator>/state/qemu</emulator><memballoon model='none'/></devices><qemu:commandline>"
                "<qemu:arg value='-device'/><qemu:arg value='edu,bus=pcie.0,addr=0x5'/>",
            ),
        ):
            self.assertIn(old, xml)
            xml = xml.replace(old, new)
        (self.state / "domain.xml").write_text(xml)
        (self.state / "libvirt" / "etc").mkdir(parents=True)
        (self.state / "libvirt" / "etc" / "qemu.conf").write_text(CONFIGURATION)
        done = self.run_in(*viot.split())
        self.assertEqual(done.returncode, 0, done.stdout)
        sockets = ("--socket-path", "/state/guest.sock", "--control", "/state/control")
        self.start("vhost-device-iommu", *sockets, "--endpoint", "00:05.0", stderr=subprocess.DEVNULL)
        self.wait_for(lambda: self.status() is not None)
        with (self.state / "said").open("w") as said:
            command = ("virt-qemu-run", "--verbose", "--root=/state/libvirt", "/state/domain.xml")
            self.start(*command, stdout=said, stderr=subprocess.STDOUT)
        self.wait_for(lambda: "guest running" in (self.state / "said").read_text())
        self.assertTrue(self.status()["connected"])

    def status(self) -> dict | None:
        """What the back-end says; nothing if it does not answer."""
        command = [str(self.program), "ctl", str(self.state / "control"), "status"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return json.loads(done.stdout) if done.returncode == 0 else None

    def wait_for(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > deadline:
                logs = (self.state / "said", self.state / "libvirt" / "log" / "qemu" / "guest.log")
                self.fail("".join(path.read_text() for path in logs if path.exists()))
            select.select([], [], [], 0.05)


class DescriptorTest(unittest.TestCase):
    """The descriptor is an example."""

    def test_a_package_installs_it_where_nobody_looks_for_it(self):
        where = [name for name in installed() if name.endswith(EXAMPLE.name)]
        self.assertEqual(where, [f"usr/share/doc/vhost-device-iommu/examples/{EXAMPLE.name}"])
        self.assertFalse([name for name in installed() if name.startswith(DESCRIPTORS)])


if __name__ == "__main__":
    unittest.main()
