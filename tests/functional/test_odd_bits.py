# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Linux's drivers ignore reserved and undefined bits. A build of the back-end sets them (`--cfg odd_bits`)."""

import re
from typing import TYPE_CHECKING

from bases.engine import FUNCTION, EngineTest
from bases.engine import IOVA as ENGINE_IOVA
from bases.paging import FIRST, IOVA, PAGE, Call, PagingTest
from bases.process import SOURCE, TARGET, ProcessTest
from bases.testcase import UNKNOWN_TO_GUEST, FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.control import endpoint_id
from lab_kit.vm.guest import Guest, GuestError, pattern
from lab_kit.vm.machine import ENDPOINTS

# src/transport/odd_bits.rs: the address of a fault says what is wrong with its report.
RESERVED, NO_ADDRESS, NO_REASON = 0x1000, 0x2000, 0x4000
NEXT = 0x8000
# An ATTACH of this one comes back as it was.
UNWRITTEN_PASID = 13

REPORT = re.compile(r"\w+ fault from EP .*")

# Only a type checker sees the cases as a test case: a test runner is not to run them by themselves.
if TYPE_CHECKING:
    Base = FunctionalTest
else:
    Base = object


class OddBitsCases(Base):
    """What holds for every driver; the classes below say on which kernel."""

    backend = staticmethod(lab.odd_backend)

    def reports(self, guest: Guest) -> list[str]:
        """What the driver says of faults."""
        found = (REPORT.search(line) for line in guest.lines("log fault from EP"))
        return [report[0] for report in found if report]

    def test_properties_are_understood__p53_v60(self):
        _, guest, control = self.start(
            "--reserved-region", "0x20000000:0x2fffffff:0", "--reserved-region", "0xfee00000:0xfeefffff:1"
        )
        self.assertEqual(len(guest.lines("log unknown viommu prop 0x7ff")), len(ENDPOINTS))
        for function in ENDPOINTS:
            # The stock driver has another one: see `PatchedDriverTest`.
            regions = {(0x2000_0000, 0x2FFF_FFFF, "reserved"), (0xFEE0_0000, 0xFEEF_FFFF, "msi")}
            self.assertLessEqual(regions, guest.reserved(function))
        self.assert_clean(control)

    def test_bypass_is_one_bit__c77(self):
        _, _, control = self.start("--boot-bypass", "off")
        for function in ENDPOINTS:
            self.assertEqual(control.domain(function)["kind"], "paging")
        self.assertEqual(control.endpoint(UNKNOWN_TO_GUEST)["state"], "blocked")
        self.assert_clean(control)

    def test_requests_have_the_status_of_their_tail__r18(self):
        _, guest, control = self.start()
        self.attach_vfio(guest, "one", FIRST, "one")
        guest.map("one", IOVA, PAGE, "rw", 3)
        self.assertEqual(control.dma_read(FIRST, IOVA, PAGE), pattern(3, PAGE))
        guest.unmap("one", IOVA, PAGE)
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.assertEqual(control.counters()["requests_failed"], 0)
        self.assert_clean(control)

    def test_reports_are_printed_as_they_are_meant_or_not_at_all__e70_x32_x33(self):
        _, guest, control = self.start()
        self.attach_vfio(guest, "one", FIRST, "one")
        guest.mark_log()
        for wrong in (0, RESERVED, NO_ADDRESS, NO_REASON, NEXT):
            self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA + wrong, 16)
        endpoint = endpoint_id(FIRST)
        # Reports are handled in order: when the last is there, the others are.
        guest.wait_log(f"fault from EP {endpoint} at {IOVA + NEXT:#x}")
        self.assertEqual(
            self.reports(guest),
            [
                f"page fault from EP {endpoint} at {IOVA:#x} [R]",
                f"page fault from EP {endpoint}",
                f"unknown fault from EP {endpoint} at {IOVA + NO_REASON:#x} [R]",
                f"page fault from EP {endpoint} at {IOVA + NEXT:#x} [R]",
            ],
        )
        self.assertEqual(control.counters()["fault_reports"], 5)
        self.assert_clean(control)


class StockDriverTest(OddBitsCases, FunctionalTest):
    """The driver as it is in Linux."""

    kernel = staticmethod(lab.lab_kernel)


class PatchedDriverTest(OddBitsCases, PagingTest):
    """The patched driver: page requests too, and bits that the stock driver does not ignore."""

    def test_a_property_with_reserved_bits_is_ignored__p53(self):
        _, guest, _ = self.start("--reserved-region", "0xfee00000:0xfeefffff:1")
        for function in ENDPOINTS:
            self.assertEqual(guest.reserved(function), {(0xFEE0_0000, 0xFEEF_FFFF, "msi")})
        self.assertEqual(len(guest.lines("log unknown viommu prop 0xf001")), len(ENDPOINTS))

    def test_page_requests_are_taken_and_answered__x22_x32(self):
        _, guest, control = self.start_attached()
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA + 0x10, 64))
        (fault,) = self.faults(guest, "one")
        self.assertEqual((fault["address"], fault["access"], fault["last"]), (hex(IOVA), "r", "1"))
        self.assertEqual(fault["pasid"], "none")
        guest.map("one", IOVA, PAGE, "rw", 5)
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(5, PAGE)[0x10:0x50])
        self.assertEqual(control.counters()["requests_failed"], 0)
        self.assert_answered(control, 1)

    def test_a_report_is_no_page_request__x33(self):
        """With a last flag, a group and a length in it, for an endpoint that has page requests."""
        _, guest, control = self.start_attached(queue_size=4)
        asker = self.connect()
        pages = [{"iova": IOVA + page * NEXT, "access": "r"} for page in range(5)]
        # More than the queue has buffers for: refused, and the first of them reported.
        guest.mark_log()
        refused = asker.execute("page-request", endpoint=FIRST, pages=pages)
        self.assertEqual(refused["response"], "invalid-request")
        guest.wait_log(f"fault from EP {endpoint_id(FIRST)} at {IOVA:#x} [R]")
        read = Call(lambda: asker.dma_read(FIRST, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        guest.map("one", IOVA, PAGE, "r", 5)
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(5, 16))
        self.assertEqual(control.counters()["page_response"], 1)
        self.assert_clean(control)


class PatchedDriverPasidTest(EngineTest):
    """The patched driver: PASIDs and the fault engine."""

    kernel = staticmethod(lab.patched_kernel)
    backend = staticmethod(lab.odd_backend)

    def test_pasids_have_their_memory_and_their_page_requests__x22_x27(self):
        guest, control = self.start_with_pasids(5)
        guest.map("one", ENGINE_IOVA, PAGE, "r", 1)
        self.assertEqual(self.run_one(guest, "read", address=ENGINE_IOVA, length=64)["status"], "done")
        flags = "pasid,privileged,page-requests"
        self.begin(guest, "read", address=ENGINE_IOVA, length=64, pasid=5, flags=flags)
        (fault,) = self.faults(guest, "5")
        self.assertEqual((fault["pasid"], fault["access"]), ("5", "rp"))
        guest.map("5", ENGINE_IOVA, PAGE, "r", 2)
        self.answer(guest, fault, "success", "5")
        self.assertEqual(self.end(guest)["status"], "done")
        self.assertEqual([entry["pasid"] for entry in control.endpoint(FUNCTION)["pasids"]], [5])
        self.assertEqual(control.counters()["requests_failed"], 0)
        self.assert_none_outstanding(guest, control)

    def test_an_attach_that_comes_back_unwritten_has_failed__r18(self):
        guest, control = self.start_with_pasids(5)
        guest.run(f"ioas {UNWRITTEN_PASID}")
        guest.run(f"table {UNWRITTEN_PASID} one {UNWRITTEN_PASID} pasids")
        with self.assertRaisesRegex(GuestError, "Input/output error"):
            guest.run(f"attach-pasid one {UNWRITTEN_PASID} {UNWRITTEN_PASID}")
        self.assertEqual([entry["pasid"] for entry in control.endpoint(FUNCTION)["pasids"]], [5])
        self.assertEqual(control.counters()["requests_unwritten"], 1)


class PatchedDriverTableTest(ProcessTest):
    """The patched driver: page tables of processes. It finds its format among formats that no driver knows."""

    by_turns = True
    backend = staticmethod(lab.odd_backend)

    def test_a_table_is_attached_in_the_format_that_the_driver_knows__x74(self):
        process, control = self.start_process()
        process.memory(SOURCE, 4 * PAGE, seed=3)
        process.memory(TARGET, 4 * PAGE)
        self.assertEqual(process.copied(SOURCE, TARGET, 4 * PAGE), 4)
        process.verify(TARGET, 4 * PAGE, 3)
        process.drop(TARGET, 4 * PAGE)
        self.assertEqual(process.copy(SOURCE, TARGET, PAGE)["status"], "invalid-request")
        self.assertEqual(control.counters()["requests_failed"], 0)
        self.assert_answered(control)


if __name__ == "__main__":
    FunctionalTest.main()
