# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Kernels that follow one another in the guest, with the devices of the one before as it has left them."""

from dma import PAGE, DmaTest, memory
from edu import Edu
from passthrough import EDU, NVME, functions

from lab_kit.vm.disk import Disk
from lab_kit.vm.guest import TIMEOUT, Guest, pattern
from lab_kit.vm.machine import CRASH_KERNEL

EDU_GUEST, DISK_GUEST = "00:05.0", "00:06.0"
FROM, TO = 0x200_0000, 0x300_0000
# What the first kernel maps and no other does, and the second.
ONLY = {1: 0x400_0000, 2: 0x500_0000}


class NextKernelTest(DmaTest):
    def start_drivers(self, guest: Guest, disk: Disk) -> None:
        guest.load("virtio_iommu")
        guest.load("nvme")
        self.wait_until("the disk", disk.is_there, TIMEOUT)
        self.attach_vfio(guest, "edu", EDU_GUEST, "space")

    def use(self, guest: Guest, disk: Disk, kernel: int) -> None:
        """DMA of both devices for the kernel of that number."""
        guest.map("space", FROM, PAGE, "r", kernel)
        guest.map("space", TO, PAGE, "rw", 0)
        edu = Edu(guest, "edu")
        edu.read(FROM)
        edu.write(TO)
        self.assertEqual(memory(guest, "space", TO), pattern(kernel, PAGE))
        disk.use()

    def check_next(self, guest: Guest, function: str, disk: Disk, kernel: int) -> None:
        """The next kernel has its own translations, and nothing of what the one before has mapped."""
        self.start_drivers(guest, disk)
        edu = Edu(guest, "edu")
        self.refused_and_told(function, "write", edu.write, ONLY[kernel - 1])
        self.refused(function, "read", edu.read, ONLY[kernel - 1])
        self.use(guest, disk, kernel)

    def test_next_kernel_has_the_devices_to_itself(self):
        function = functions(EDU)[0]
        devices = f"{function}={EDU_GUEST}", f"{functions(NVME)[0]}={DISK_GUEST}"
        machine = self.start_passthrough(*devices, memory="768M", next_kernels=2)
        guest, control = machine.guest, self.connect_to(machine)
        disk = Disk(guest)
        self.start_drivers(guest, disk)
        guest.map("space", ONLY[1], PAGE, "rw", 1)
        self.use(guest, disk, 1)

        # In good order: drivers shut their devices down.
        machine.load_next("kexec", CRASH_KERNEL)
        machine.go_on("kexec")
        # The IOMMU's driver is the first that does, and the disk is used until the last.
        for endpoint in EDU_GUEST, DISK_GUEST:
            self.assertEqual(control.endpoint(endpoint)["state"], "attached")
        self.check_next(guest, function, disk, 2)

        # After a panic, in the middle of DMA: nobody tells a device anything.
        guest.map("space", ONLY[2], PAGE, "rw", 1)
        machine.load_next("crash")
        disk.start_writing()
        machine.go_on("crash")
        self.check_next(guest, function, disk, 3)
        self.assert_no_other_faults()
        self.assert_clean(control)
