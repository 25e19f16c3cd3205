# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A passed-through NVMe disk under the guest's stock drivers: nvme, and virtio-iommu."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

from dma import DmaTest
from passthrough import EDU, NVME, functions

from lab_kit.vm.disk import Disk
from lab_kit.vm.guest import TIMEOUT, Guest

GUEST, EDU_GUEST = "00:05.0", "00:06.0"

# How long the disk is written and read at a time.
SECONDS = float(os.environ.get("LAB_DISK_SECONDS", "20"))

# How often at least what serves the front-end's connection is replaced meanwhile.
REATTACHMENTS = 50

MSI = (0xFEE0_0000, 0xFEEF_FFFF, "msi")


class NvmeTest(DmaTest):
    def load_driver(self, guest: Guest, disk: Disk) -> None:
        guest.load("nvme")
        self.wait_until("the disk", disk.is_there, TIMEOUT)

    def test_stock_drivers_use_the_disk_whatever_happens_to_the_guest(self):
        function, edu = functions(NVME)[0], functions(EDU)[0]
        machine = self.start_passthrough(f"{function}={GUEST}", f"{edu}={EDU_GUEST}")
        guest, control = machine.guest, self.connect_to(machine)
        disk = Disk(guest)
        # The firmware has looked for a boot sector on the disk, with QEMU's mapping of guest memory.
        self.assertEqual(control.endpoint(GUEST)["state"], "front-end")
        self.assert_bypass(machine, edu)
        self.assert_no_other_faults()

        guest.load("virtio_iommu")
        self.assertEqual(control.endpoint(GUEST)["state"], "attached")
        self.assertIn(MSI, guest.reserved(GUEST))
        self.load_driver(guest, disk)
        disk.use(SECONDS)
        # Its interrupts have come.
        self.assertRegex("\n".join(guest.lines("cat /proc/interrupts")), r"[1-9]\d* .*nvme0q1")
        self.assert_no_other_faults()

        # The machine pauses while the disk is busy.
        with ThreadPoolExecutor() as others:
            busy = others.submit(disk.use, 10.0)
            for _ in range(3):
                machine.qmp("stop")
                self.assertEqual(control.endpoint(GUEST)["state"], "attached")
                machine.qmp("cont")
            busy.result()
        self.assert_no_other_faults()

        # What serves QEMU's connection is replaced while the disk is busy, and QEMU says nothing to it.
        with ThreadPoolExecutor() as others:
            busy = others.submit(disk.use, SECONDS)
            answers = [control.execute("reattach")]
            while len(answers) < REATTACHMENTS or not busy.done():
                answers.append(control.execute("reattach"))
            busy.result()
        self.assertEqual({answer["messages"] for answer in answers}, {answers[0]["messages"]})
        self.assertEqual(control.endpoint(GUEST)["state"], "attached")
        self.assert_no_other_faults()

        # The driver goes and comes.
        guest.run(f"unbind {GUEST}")
        guest.run(f"bind {GUEST} nvme")
        self.wait_until("the disk", disk.is_there, TIMEOUT)
        disk.use()
        self.assert_no_other_faults()
        self.assert_clean(control)

        # Another boot: the firmware's turn again, then the drivers'.
        guest.reboot()
        self.assertEqual(control.endpoint(GUEST)["state"], "front-end")
        self.assert_bypass(machine, edu)
        self.assert_no_other_faults()
        guest.load("virtio_iommu")
        self.load_driver(guest, disk)
        disk.verify()
        disk.use()
        self.assert_no_other_faults()
        self.assert_clean(control)

        # The machine dies in the middle of it.
        disk.start_writing()
        os.kill(machine.qemu_pid(), signal.SIGKILL)
        machine.wait()
        self.assert_free(function)
        self.assert_no_other_faults()
