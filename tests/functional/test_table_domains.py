# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The driver of guest/linux/ with the parameter `tables`: what drivers and programs of the guest map is in page tables that
the device reads. No MAP and no UNMAP request is sent."""

from bases.engine import FUNCTION, HITS, EngineTest, engine_register
from bases.engine import IOVA as BUFFER
from bases.engine import PAGE as PAGE_SIZE
from bases.paging import FIRST, IOVA, PAGE, SECOND, Call, PagingTest
from lab_kit.vm import lab
from lab_kit.vm.control import Control, endpoint_id
from lab_kit.vm.guest import pattern
from test_pci_endpoint import FIRST as ENDPOINT_TEST
from test_pci_endpoint import FunctionTest

PARAMETERS = "tables=1"


class TableCases(PagingTest):
    """What the tests have in common."""

    driver_parameters = PARAMETERS
    by_turns = True
    waits_for_faults = False

    def assert_no_mapping_was_sent(self, control: Control) -> None:
        counters = control.counters()
        names = ("map", "map_failed", "unmap", "unmap_failed", "invalidate_failed", "requests_failed")
        self.assertEqual({name: counters[name] for name in names}, dict.fromkeys(names, 0))
        self.assert_clean(control)

    def assert_blocked(self, control: Control, function: str, iova: int) -> None:
        self.assert_refused("TranslationFault", control.dma_read, function, iova, 16)


class TableDomainTest(TableCases):
    """A program maps with VFIO and iommufd."""

    shares_machines = True

    def start_mapped(self, seed: int = 1):
        """The first endpoint reaches a page."""
        machine, guest, control = self.start(command_line="iommu.strict=1")
        self.attach_vfio(guest, "first", FIRST, "one")
        guest.map("one", IOVA, PAGE, "rw", seed)
        return machine, guest, control

    def test_mapping_makes_no_request_and_unmapping_makes_one__x78_x79(self):
        _, guest, control = self.start_mapped()
        domain = control.domain(FIRST)
        self.assertEqual(domain["kind"], "table")
        self.assertEqual((domain["table"]["format"], domain["table"]["input_bits"]), ("X86_64", 48))
        self.assertEqual(control.dma_read(FIRST, IOVA, PAGE), pattern(1, PAGE))
        before = control.total()["invalidate"]
        guest.map("one", IOVA + PAGE, PAGE, "rw", 2)
        self.assertEqual(control.total()["invalidate"], before)
        self.assertEqual(control.dma_read(FIRST, IOVA + PAGE, PAGE), pattern(2, PAGE))
        guest.unmap("one", IOVA, PAGE)
        self.assertEqual(control.total()["invalidate"], before + 1)
        self.assert_blocked(control, FIRST, IOVA)
        self.assertEqual(control.dma_read(FIRST, IOVA + PAGE, PAGE), pattern(2, PAGE))
        self.assert_no_mapping_was_sent(control)

    def test_a_read_only_page_is_not_written(self):
        _, guest, control = self.start_mapped()
        guest.map("one", IOVA + PAGE, PAGE, "r", 2)
        self.assert_refused("PermissionFault", control.dma_write, FIRST, IOVA + PAGE, b"\xff" * 8)
        control.dma_write(FIRST, IOVA, b"\xff" * 8)
        self.assertEqual(guest.peek("one", IOVA, 8), b"\xff" * 8)
        self.assertEqual(guest.peek("one", IOVA + PAGE, 8), pattern(2, 8))
        self.assert_no_mapping_was_sent(control)

    def test_two_endpoints_share_a_table_until_each_is_detached(self):
        _, guest, control = self.start_mapped()
        guest.open_vfio("second", SECOND)
        guest.run("attach second one")
        self.assertEqual(control.domain(FIRST)["endpoints"], [endpoint_id(FIRST), endpoint_id(SECOND)])
        guest.map("one", IOVA + PAGE, PAGE, "rw", 2)
        for function in (FIRST, SECOND):
            self.assertEqual(control.dma_read(function, IOVA + PAGE, PAGE), pattern(2, PAGE))
        guest.unmap("one", IOVA + PAGE, PAGE)
        for function in (FIRST, SECOND):
            self.assert_blocked(control, function, IOVA + PAGE)
        guest.run("detach first")
        self.assert_blocked(control, FIRST, IOVA)
        self.assertEqual(control.dma_read(SECOND, IOVA, PAGE), pattern(1, PAGE))
        guest.run("detach second")
        self.assert_blocked(control, SECOND, IOVA)
        # The address space is there still, and its table is made again.
        guest.run("attach second one")
        self.assertEqual(control.dma_read(SECOND, IOVA, PAGE), pattern(1, PAGE))
        self.assert_no_mapping_was_sent(control)

    def test_an_endpoint_goes_from_table_to_table(self):
        _, guest, control = self.start_mapped()
        guest.run("ioas two")
        guest.run("attach first two")
        self.assert_blocked(control, FIRST, IOVA)
        guest.map("two", IOVA, PAGE, "rw", 5)
        self.assertEqual(control.dma_read(FIRST, IOVA, PAGE), pattern(5, PAGE))
        guest.run("attach first one")
        self.assertEqual(control.dma_read(FIRST, IOVA, PAGE), pattern(1, PAGE))
        self.assert_no_mapping_was_sent(control)

    def test_a_page_request_is_answered_with_an_entry__x79(self):
        _, guest, control = self.start("--page-response-timeout", "0")
        self.attach_table(guest, "one", FIRST)
        self.assertEqual(control.domain(FIRST)["kind"], "table")
        reader = self.connect()
        for seed in (3, 4):
            read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
            (fault,) = self.faults(guest, "one")
            guest.map("one", IOVA, PAGE, "rw", seed)
            guest.run(f"answer one {fault['cookie']} success")
            self.assertEqual(read.result(), pattern(seed, 16))
            guest.unmap("one", IOVA, PAGE)
        self.assert_answered(control, 2)
        self.assert_no_mapping_was_sent(control)


class TableSuspendTest(TableCases):
    """The guest is suspended, and the device has lost the attachments."""

    def test_tables_are_attached_again_after_a_suspend(self):
        _, guest, control = self.start()
        self.attach_vfio(guest, "first", FIRST, "one")
        guest.map("one", IOVA, PAGE, "rw", 1)
        self.attach_table(guest, "two", SECOND)
        guest.map("two", IOVA, PAGE, "r", 2)
        before, resets = control.status(), control.counters()["resets"]
        guest.run("write /sys/power/pm_test devices")
        guest.run("write /sys/power/state freeze")
        self.assertGreater(control.counters()["resets"], resets)
        self.assertEqual(control.status()["endpoints"], before["endpoints"])
        self.assertEqual(control.status()["domains"], before["domains"])
        self.assertEqual(control.dma_read(FIRST, IOVA, PAGE), pattern(1, PAGE))
        self.assertEqual(control.dma_read(SECOND, IOVA, PAGE), pattern(2, PAGE))
        guest.unmap("one", IOVA, PAGE)
        self.assert_blocked(control, FIRST, IOVA)
        self.assert_no_mapping_was_sent(control)


class TableEngineTest(EngineTest):
    """An engine keeps translations of a table, as a device with ATS does."""

    kernel = staticmethod(lab.patched_kernel)
    driver_parameters = PARAMETERS
    by_turns = True

    def test_what_an_engine_has_kept_ends_with_the_unmapping__x78(self):
        guest, control = self.start_attached()
        self.assertEqual(control.domain(FUNCTION)["kind"], "table")
        guest.map("one", BUFFER, PAGE_SIZE, "rw", 1)
        for _ in range(2):
            self.assertEqual(self.run_one(guest, "read", address=BUFFER, length=64)["status"], "done")
        self.assertGreater(self.register(guest, engine_register(0, HITS)), 0)
        guest.unmap("one", BUFFER, PAGE_SIZE)
        self.assertEqual(self.run_one(guest, "read", address=BUFFER, length=64)["status"], "translation")
        self.assertEqual(control.counters()["map"], 0)

    def test_what_a_pasid_reaches_was_not_sent(self):
        guest, control = self.start_with_pasids(5)
        guest.map("5", BUFFER, PAGE_SIZE, "rw", 1)
        asks = {"address": BUFFER, "length": 64, "pasid": 5, "flags": "pasid"}
        self.assertEqual(self.run_one(guest, "read", **asks)["status"], "done")
        guest.unmap("5", BUFFER, PAGE_SIZE)
        self.assertEqual(self.run_one(guest, "read", **asks)["status"], "translation")
        self.assertEqual({domain["kind"] for domain in control.status()["domains"]}, {"table"})
        self.assertEqual(control.counters()["map"], 0)


class TableDriverTest(FunctionTest):
    """A driver of the kernel maps with the DMA API."""

    kernel = staticmethod(lab.patched_kernel)
    driver_parameters = PARAMETERS
    by_turns = True

    def invalidations(self, kind: str, strict: int) -> int:
        machine, backend = self.start_functions(ENDPOINT_TEST, command_line=f"iommu.strict={strict}")
        self.assertEqual(machine.guest.group_types()[ENDPOINT_TEST], kind)
        self.assertEqual(backend.control.domain(ENDPOINT_TEST)["kind"], "table")
        before = backend.control.total()["invalidate"]
        self.check_transfers(machine.guest)
        total = backend.control.total()
        self.assertEqual((total["map"], total["unmap"], total["invalidate_failed"]), (0, 0, 0))
        self.assert_clean(backend.control)
        return total["invalidate"] - before

    def test_a_driver_transfers_in_strict_mode(self):
        # 7 lengths; a copy has two mappings.
        self.assertGreaterEqual(self.invalidations("DMA", 1), 28)

    def test_a_driver_transfers_in_lazy_mode(self):
        self.invalidations("DMA-FQ", 0)


if __name__ == "__main__":
    TableDomainTest.main()
