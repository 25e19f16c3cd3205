# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Guest memory that comes and goes under devices that are passed through."""

from dma import PAGE, DmaTest, memory
from edu import Edu
from passthrough import EDU, NVME, functions

from lab_kit.vm.disk import Disk
from lab_kit.vm.guest import TIMEOUT, pattern

EDU_GUEST, DISK_GUEST = "00:05.0", "00:06.0"
FROM, TO, READ_ONLY = 0x200_0000, 0x300_0000, 0x400_0000

# Where QEMU puts a module: the guest has no other memory above 4 GiB.
MODULE = 1 << 32
LENGTH = 256 << 20
# Linux' unit of memory that comes and goes, on x86.
BLOCK = 128 << 20


class MemoryTest(DmaTest):
    def test_mappings_wait_for_memory_and_lose_it(self):
        function, disk_function = functions(EDU)[0], functions(NVME)[0]
        machine = self.start_passthrough(
            f"{function}={EDU_GUEST}", f"{disk_function}={DISK_GUEST}", extra=("-m", "256M,slots=1,maxmem=2G")
        )
        guest, control = machine.guest, self.connect_to(machine)
        guest.load("virtio_iommu")
        guest.only_containers()
        self.attach_vfio(guest, "edu", EDU_GUEST, "space")
        edu = Edu(guest, "edu")
        guest.map("space", FROM, PAGE, "r", 1)
        guest.map_physical("space", TO, PAGE, "rw", MODULE)
        guest.map_physical("space", READ_ONLY, PAGE, "r", MODULE + LENGTH - PAGE)
        edu.read(FROM)
        for iova in (TO, READ_ONLY):
            self.refused_and_told(function, "write", edu.write, iova)

        machine.plug_memory(LENGTH)
        edu.write(TO)
        self.assertEqual(machine.read_physical(MODULE, 2 * PAGE), pattern(1, PAGE) + bytes(PAGE))
        self.refused(function, "write", edu.write, READ_ONLY)
        self.assertEqual(machine.read_physical(MODULE + LENGTH - PAGE, PAGE), bytes(PAGE))
        edu.read(READ_ONLY)
        edu.write(TO)
        self.assertEqual(machine.read_physical(MODULE, PAGE), bytes(PAGE))
        self.assert_no_other_faults()

        regions = len(control.status()["memory"])
        machine.unplug_memory()
        self.wait_until("the end of the memory", lambda: len(control.status()["memory"]) < regions, TIMEOUT)
        for iova in (TO, READ_ONLY):
            self.refused_and_told(function, "write", edu.write, iova)

        # The guest uses the next module: new memory comes from there first.
        guest.unmap("space", TO, PAGE)
        guest.unmap("space", READ_ONLY, PAGE)
        machine.plug_memory(LENGTH)
        guest.run(f"write /sys/devices/system/memory/memory{MODULE // BLOCK}/state online_kernel")
        guest.map("space", TO, PAGE, "rw", 2)
        mappings = control.execute("mappings", domain=control.endpoint(EDU_GUEST)["domain"])
        (where,) = (mapping["gpa"] for mapping in mappings if mapping["iova"] == TO)
        self.assertIn(where, range(MODULE, MODULE + BLOCK))
        edu.read(FROM)
        edu.write(TO)
        self.assertEqual(memory(guest, "space", TO), pattern(1, PAGE))
        disk = Disk(guest)
        guest.load("nvme")
        self.wait_until("the disk", disk.is_there, TIMEOUT)
        disk.use()
        self.assert_no_other_faults()
        self.assert_clean(control)
