# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The guest is suspended and resumed with the driver of guest/linux/."""

from bases.paging import FIRST, IOVA, PAGE, SECOND, Call, PagingTest
from lab_kit.vm.guest import pattern
from lab_kit.vm.machine import Machine


class SuspendCases(PagingTest):
    """The cases; the classes below say how far the machine sleeps."""

    def suspend(self, machine: Machine) -> None:
        raise NotImplementedError

    def attachments_and_mappings_are_there_again(self) -> None:
        machine, guest, control = self.start()
        self.attach_vfio(guest, "plain", FIRST, "plain")
        guest.map("plain", IOVA, 4 * PAGE, "rw", 1)
        self.attach_table(guest, "two", SECOND)
        guest.map("two", IOVA, PAGE, "r", 2)
        before = control.status()
        resets = control.counters()["resets"]
        for _ in range(2):
            self.suspend(machine)
        self.assertGreater(control.counters()["resets"], resets)
        self.assertEqual(control.status()["endpoints"], before["endpoints"])
        self.assertEqual(control.status()["domains"], before["domains"])
        self.assertEqual(control.dma_read(FIRST, IOVA, 4 * PAGE), pattern(1, 4 * PAGE))
        self.assertEqual(control.dma_read(SECOND, IOVA, PAGE), pattern(2, PAGE))
        guest.unmap("plain", IOVA, 4 * PAGE)
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.assert_clean(control)

    def groups_end_and_answers_to_them_are_dropped(self) -> None:
        machine, guest, control = self.start_attached()
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
        (late,) = self.faults(guest, "one")
        self.suspend(machine)
        self.assert_refused("PageRequestFailed", read.result)
        guest.run(f"answer one {late['cookie']} success")
        counters = control.counters()
        self.assertEqual((counters["page_response"], counters["page_response_stale"]), (0, 0))
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        guest.map("one", IOVA, PAGE, "r", 3)
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(3, 16))
        self.assert_clean(control)


class SuspendTest(SuspendCases):
    """The kernel's test mode suspends the devices and resumes them by itself: the driver has a part in this only."""

    def suspend(self, machine: Machine) -> None:
        machine.guest.run("write /sys/power/pm_test devices")
        machine.guest.run("write /sys/power/state freeze")

    def test_attachments_and_mappings_are_there_again(self):
        self.attachments_and_mappings_are_there_again()

    def test_groups_end_and_answers_to_them_are_dropped(self):
        self.groups_end_and_answers_to_them_are_dropped()


class SuspendToMemoryTest(SuspendCases):
    """The guest goes to ACPI's S3 and QEMU wakes it. All devices are reset in between, the IOMMU included."""

    def suspend(self, machine: Machine) -> None:
        machine.suspend_to_memory()

    def test_attachments_and_mappings_are_there_again_after_s3(self):
        self.attachments_and_mappings_are_there_again()

    def test_groups_end_and_answers_to_them_are_dropped_by_s3(self):
        self.groups_end_and_answers_to_them_are_dropped()


if __name__ == "__main__":
    PagingTest.main()
