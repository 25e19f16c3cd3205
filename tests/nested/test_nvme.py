# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A passed-through NVMe disk under the guest's stock drivers: nvme, and virtio-iommu."""

import os
import signal
import threading
import time

from harness.guest import TIMEOUT, Guest
from kernel_log import KernelLog
from passthrough import NVME, PassthroughTest, functions

GUEST = "00:05.0"
DISK = "nvme0n1"
MIB = 1 << 20

# How long the disk is written and read at a time.
SECONDS = float(os.environ.get("VDI_DISK_SECONDS", "20"))

MSI = (0xFEE0_0000, 0xFEEF_FFFF, "msi")


class NvmeTest(PassthroughTest):
    def setUp(self) -> None:
        super().setUp()
        self.log = KernelLog()
        self.addCleanup(self.log.close)
        self.function = functions(NVME)[0]
        self.seed = 0

    def load_driver(self, guest: Guest) -> None:
        guest.load("nvme")
        self.wait_for_disk(guest)

    def wait_for_disk(self, guest: Guest) -> None:
        self.wait_until("the disk", lambda: DISK in guest.lines("ls /dev"), TIMEOUT)

    def use(self, guest: Guest, seconds: float = 0.0) -> None:
        """Writes parts of the disk and verifies them for that long, at least once."""
        end = time.monotonic() + seconds
        while True:
            self.seed += 1
            part = f"{self.seed % 8 * MIB} {MIB} {self.seed}"
            guest.run(f"disk-write {DISK} {part}")
            guest.run(f"disk-verify {DISK} {part}")
            if time.monotonic() >= end:
                return

    def assert_no_faults(self) -> None:
        self.assertEqual(self.log.faults(), [])

    def test_stock_drivers_use_the_disk_whatever_happens_to_the_guest(self):
        machine = self.start_passthrough(f"{self.function}={GUEST}")
        guest, control = machine.guest, self.connect_to(machine)
        # The firmware has looked for a boot sector on it, with QEMU's mapping of guest memory.
        self.assertEqual(control.endpoint(GUEST)["state"], "front-end")
        self.assert_no_faults()

        guest.load("virtio_iommu")
        self.assertEqual(control.endpoint(GUEST)["state"], "attached")
        self.assertIn(MSI, guest.reserved(GUEST))
        self.load_driver(guest)
        self.use(guest, SECONDS)
        # Its interrupts have come.
        self.assertRegex("\n".join(guest.lines("cat /proc/interrupts")), r"[1-9]\d* .*nvme0q1")
        self.assert_no_faults()

        # The machine pauses while the disk is busy.
        busy = threading.Thread(target=self.use, args=(guest, 10.0))
        busy.start()
        for _ in range(3):
            machine.qmp("stop")
            self.assertEqual(control.endpoint(GUEST)["state"], "attached")
            machine.qmp("cont")
        busy.join()
        self.assert_no_faults()

        # The driver goes and comes.
        guest.run(f"unbind {GUEST}")
        guest.run(f"bind {GUEST} nvme")
        self.wait_for_disk(guest)
        self.use(guest)
        self.assert_no_faults()
        self.assert_clean(control)

        # Another boot: the firmware's turn again, then the drivers'.
        guest.run("reboot")
        machine.wait_ready()
        self.assertEqual(control.endpoint(GUEST)["state"], "front-end")
        self.assert_no_faults()
        guest.load("virtio_iommu")
        self.load_driver(guest)
        self.use(guest)
        self.assert_no_faults()
        self.assert_clean(control)

        # The machine dies in the middle of it.
        os.kill(machine.qemu_pid(), signal.SIGKILL)
        machine.wait()
        self.assert_free(self.function)
        self.assert_no_faults()
