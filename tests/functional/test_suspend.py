# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The guest is suspended and resumed with the driver of guest/linux/. The kernel's test mode goes as far as the devices
and back by itself: suspending them is what the driver has a part in."""

from bases.paging import FIRST, IOVA, PAGE, SECOND, Call, PagingTest
from lab_kit.vm.guest import Guest, pattern


class SuspendTest(PagingTest):
    """Attachments, mappings and groups across a suspend."""

    def suspend(self, guest: Guest) -> None:
        guest.run("write /sys/power/pm_test devices")
        guest.run("write /sys/power/state freeze")

    def test_attachments_and_mappings_are_there_again(self):
        _, guest, control = self.start()
        self.attach_vfio(guest, "plain", FIRST, "plain")
        guest.map("plain", IOVA, 4 * PAGE, "rw", 1)
        self.attach_table(guest, "two", SECOND)
        guest.map("two", IOVA, PAGE, "r", 2)
        before = control.status()
        resets = control.counters()["resets"]
        for _ in range(2):
            self.suspend(guest)
        self.assertGreater(control.counters()["resets"], resets)
        self.assertEqual(control.status()["endpoints"], before["endpoints"])
        self.assertEqual(control.status()["domains"], before["domains"])
        self.assertEqual(control.dma_read(FIRST, IOVA, 4 * PAGE), pattern(1, 4 * PAGE))
        self.assertEqual(control.dma_read(SECOND, IOVA, PAGE), pattern(2, PAGE))
        guest.unmap("plain", IOVA, 4 * PAGE)
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.assert_clean(control)

    def test_groups_end_and_answers_to_them_are_dropped(self):
        _, guest, control = self.start_attached()
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
        (late,) = self.faults(guest, "one")
        self.suspend(guest)
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


if __name__ == "__main__":
    PagingTest.main()
