# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The patched driver (guest/linux/) survives failed allocations during a page request. The debug kernel makes them fail on
demand."""

from test_debug_kernel import DebugKernel

from bases.paging import FIRST, IOVA, PAGE, Call, PagingTest
from lab_kit.vm import lab
from lab_kit.vm.guest import Guest, fields, pattern

FAILSLAB = "/sys/kernel/debug/failslab"


class AllocationTest(DebugKernel, PagingTest):
    """Page requests while the guest's kernel has no memory, on the debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)

    def fail_allocation(self, guest: Guest, function: str) -> None:
        """Fails the next allocation that is made while `function` runs."""
        place = fields(guest.run(f"symbol {function}"))
        for name, value in (
            ("verbose", "0"),
            ("ignore-gfp-wait", "N"),
            ("stacktrace-depth", "32"),
            ("require-start", place["start"]),
            ("require-end", place["end"]),
            ("times", "1"),
            ("probability", "100"),
        ):
            guest.run(f"write {FAILSLAB}/{name} {value}")

    def assert_failed(self, guest: Guest) -> None:
        self.assertEqual(guest.lines(f"cat {FAILSLAB}/times"), ["0"])

    def ask(self, *pages: int) -> Call:
        asker = self.connect()
        pages_asked = [{"iova": page, "access": "r"} for page in pages]
        return Call(lambda: asker.execute("page-request", endpoint=FIRST, pages=pages_asked))

    def complete_a_read(self, guest: Guest) -> None:
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        guest.map("one", IOVA, PAGE, "r", 2)
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(2, 16))

    def test_without_memory_for_a_group_its_endpoint_gets_response_failure__x70(self):
        _, guest, control = self.start_attached()
        waiting = self.ask(IOVA)
        self.wait_until("a group", lambda: control.counters()["page_request_groups_delivered"] == 1)
        self.fail_allocation(guest, "iommu_report_device_fault")
        self.assertEqual(self.ask(IOVA + PAGE).result()["response"], "response-failure")
        self.assert_failed(guest)
        # The endpoint's other group is over, and it asks no more until it is attached again.
        self.assertEqual(waiting.result()["response"], "invalid-request")
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.assertFalse(control.endpoint(FIRST)["page_requests"])
        guest.run("detach one")
        guest.run("attach-table one one")
        self.complete_a_read(guest)
        self.assert_clean(control)

    def test_without_memory_for_a_request_the_rest_of_its_group_is_answered__x39(self):
        _, guest, control = self.start_attached()
        self.fail_allocation(guest, "iommu_report_device_fault")
        group = self.ask(IOVA, IOVA + PAGE)
        (fault,) = self.faults(guest, "one")
        self.assert_failed(guest)
        self.assertEqual((fault["address"], fault["last"]), (hex(IOVA + PAGE), "1"))
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(group.result()["response"], "success")
        self.complete_a_read(guest)
        self.assert_answered(control, 2)

    def test_without_memory_for_an_answer_it_is_sent_all_the_same__x39(self):
        _, guest, control = self.start_attached()
        group = self.ask(IOVA)
        (fault,) = self.faults(guest, "one")
        self.fail_allocation(guest, "viommu_page_response")
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(group.result()["response"], "success")
        self.assert_failed(guest)
        self.complete_a_read(guest)
        # What is unmapped goes away likewise.
        self.fail_allocation(guest, "viommu_unmap_pages")
        guest.unmap("one", IOVA, PAGE)
        self.assert_failed(guest)
        self.assertEqual(control.endpoint(FIRST)["page_requests"], True)
        self.assertEqual(control.counters()["unmap"], 1)
        self.assert_answered(control, 2)


if __name__ == "__main__":
    PagingTest.main()
