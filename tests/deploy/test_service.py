# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The service under systemd itself, in a virtual machine: in a run of everything."""

import os
import pathlib
import shlex
import shutil
import subprocess
import unittest

from kit import SystemTest
from lab_kit.vm import lab

# systemd with what it runs, and no more: all of it is in the machine's memory.
LEFT_OUT = (
    "./boot/*", "./usr/share/*", "./usr/libexec/*", "./usr/lib/firmware/*", "./usr/lib/x86_64-linux-gnu/qemu/*",
    "./usr/lib/x86_64-linux-gnu/perl*", "./usr/lib/x86_64-linux-gnu/zsh/*", "./usr/bin/qemu*", "./usr/bin/fish*",
    "*libvirt*", "./usr/lib/systemd/system/systemd-udev*", "./usr/lib/systemd/system/systemd-firstboot*",
)  # fmt: skip

# What the machine does instead of serving people.
UNIT = """
[Unit]
DefaultDependencies=no
After=vhost-device-iommu@guest.socket systemd-journald.service
Wants=vhost-device-iommu@guest.socket
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/usr/bin/bash /probe.sh
"""
SCRIPT = """
# Behind what systemd sends to the terminal.
echo
service=vhost-device-iommu@guest.service control=/run/vhost-device-iommu/guest/control.sock
systemctl start $service; echo "PROBE start $?"
echo "PROBE $(systemctl show -P StatusText $service)"
pid=$(systemctl show -P MainPID $service)
while read -r line; do echo "PROBE $line"; done </proc/$pid/status
vhost-device-iommu ctl $control status >/dev/null; echo "PROBE status $?"
vhost-device-iommu ctl $control endpoint-add endpoint=00:06.0 soft=/run/vhost-device-iommu/guest/pci.sock
echo "PROBE function $(stat -c '%A %G' /run/vhost-device-iommu/guest/pci.sock)"
journalctl --no-pager -o cat -u $service
systemctl stop $service; echo "PROBE stop $? $(systemctl show -P Result $service)"
[ -S /run/vhost-device-iommu/guest.sock ]; echo "PROBE socket $?"
[ -e /run/vhost-device-iommu/guest ]; echo "PROBE directory $?"
"""
EXAMPLES = "usr/share/doc/vhost-device-iommu/examples"
OPTIONS = (
    "console=ttyS0 loglevel=4 panic=-1 no_timer_check systemd.show_status=off systemd.condition_needs_update=off "
    "systemd.unit=probe.service"
)
SECONDS = 1200.0

if os.environ.get("LAB_EXHAUSTIVE"):

    class ServiceTest(SystemTest):
        """A machine whose first process is systemd, with the units of the package."""

        def setUp(self) -> None:
            super().setUp()
            try:
                self.qemu, self.kernel = lab.qemu(), lab.debian_kernel().image
                if not shutil.which("cpio"):
                    raise lab.Missing("cpio is missing: apt-get install cpio")
            except lab.Missing as missing:
                self.skipTest(str(missing))

        def pack(self) -> pathlib.Path:
            """The system, as the machine's first file system."""
            root, packed = self.directory / "root", self.directory / "initrd"
            root.mkdir()
            excluded = " ".join(f"--exclude={shlex.quote(pattern)}" for pattern in LEFT_OUT)
            script = f"tar -C {self.system} {excluded} -cf - . | tar -C {root} -xf - && cp -a {self.ours}/. {root}/"
            subprocess.run(["sh", "-c", script], check=True)
            for name, text in (
                ("init", "#!/bin/sh\nexec /usr/lib/systemd/systemd\n"),
                ("probe.sh", SCRIPT),
                ("usr/lib/systemd/system/probe.service", UNIT),
                ("etc/vhost-device-iommu/guest.conf", (root / EXAMPLES / "guest.conf").read_text()),
                ("etc/machine-id", ""),
            ):
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).write_text(text)
            (root / "init").chmod(0o755)
            subprocess.run(["sh", "-c", f"cd {root} && find . | cpio -o -H newc --quiet >{packed}"], check=True)
            return packed

        def test_the_service_starts_locked_up_and_ends(self):
            machine = ["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1536", "-nographic", "-no-reboot"]
            boot = ["-kernel", str(self.kernel), "-initrd", str(self.pack()), "-append", OPTIONS]
            done = subprocess.run(
                [*self.qemu, *machine, *boot], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
            )
            output = done.stdout.decode(errors="replace").replace("\r", "")
            lines = [line.removeprefix("PROBE ") for line in output.splitlines() if line.startswith("PROBE ")]
            for wanted in (
                "start 0",
                "Ready for front-ends, with endpoints: 1",
                "CapEff: 0000000000000000",
                "NoNewPrivs: 1",
                "Seccomp: 2",
                "status 0",
                "function srw-rw---- kvm",
                "stop 0 success",
                "socket 0",
                "directory 1",
            ):
                self.assertIn(wanted, [line.replace("\t", " ") for line in lines], output[-6000:])
            [user] = [line.split()[1] for line in lines if line.startswith("Uid:")]
            self.assertNotEqual(user, "0")
            # Its log is there, and does not miss the program's own filter, inside of the unit's.
            self.assertIn("endpoint 0x30 was added", output)
            self.assertNotIn("without a system call filter", output)


if __name__ == "__main__":
    unittest.main()
