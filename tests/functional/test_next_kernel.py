# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A kernel that follows another one without a reset of the machine."""

from bases.testcase import FunctionalTest
from lab_kit.vm.guest import pattern
from lab_kit.vm.machine import CRASH_KERNEL, ENDPOINTS

FIRST = ENDPOINTS[0]
IOVA = 0x100_0000
LENGTH = 0x4000


class NextKernelTest(FunctionalTest):
    """The next kernel comes by kexec, or after a panic."""

    def check(self, way: str) -> None:
        """Nothing that one kernel has mapped is there for the driver of the next."""
        machine, guest, control = self.start(command_line=CRASH_KERNEL, next_kernels=1)
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, LENGTH, "rw", 1)
        self.assertEqual(control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
        resets = control.counters()["resets"]

        machine.load_next(way, self.command_line)
        machine.go_on(way)
        # The end of a driver looks like a pause without QMP (test_qmp.py), and a panic is no end.
        self.assertEqual(control.endpoint(FIRST)["state"], "attached")
        guest.load("virtio_iommu")
        self.assertGreater(control.counters()["resets"], resets)
        self.assertEqual(set(guest.group_types()), set(ENDPOINTS))
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA + LENGTH, LENGTH, "rw", 2)
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.assertEqual(control.dma_read(FIRST, IOVA + LENGTH, LENGTH), pattern(2, LENGTH))
        self.assertEqual(control.counters()["connections"], 1)
        self.assert_clean(control)

    def test_kexec(self):
        self.check("kexec")

    def test_kernel_that_is_there_for_a_crash(self):
        self.check("crash")


if __name__ == "__main__":
    FunctionalTest.main()
