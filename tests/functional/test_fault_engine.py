# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The fault engine does DMA in a Linux guest, with the stock driver and with that of guest/linux/ (page requests)."""

from bases.engine import (
    ATS,
    BUS_MASTER,
    CACHED,
    CHAIN,
    COMPLETED,
    ENABLED,
    EXEC,
    FUNCTION,
    HITS,
    INVALIDATED,
    IOVA,
    LIMIT,
    LIST,
    OUTSTANDING,
    OUTSTANDING_PEAK,
    PAGE,
    PASID,
    PRI,
    PRIVILEGED,
    STATUS,
    TARGET,
    WAITING_FOR_ALLOCATION,
    EngineTest,
    engine_register,
)
from bases.sharing import own_machine
from lab_kit.vm import lab
from lab_kit.vm.guest import SECONDS, Guest, GuestError, pattern

# In config space: test registers, memory, fault engine. And addresses that no function of the machine has.
BARS = (0x10, 0x14, 0x18)
NOWHERE_ELSE = 0xD000_0000

DRIVER = "/sys/bus/virtio/drivers/virtio_iommu"


class StockDriverTest(EngineTest):
    """The stock driver knows neither page requests nor PASIDs, and enables neither."""

    def test_dma_goes_where_it_is_mapped_and_what_is_not_is_a_fault(self):
        guest, control = self.start_function()
        guest.run("ioas one")
        guest.run("attach one one")
        self.take_engines(guest)
        self.assertEqual(self.register(guest, ENABLED), BUS_MASTER)
        guest.map("one", IOVA, 4 * PAGE, "r", 7)
        done = self.run_one(guest, "copy", address=IOVA + 5, other=TARGET + 9, length=3 * PAGE)
        self.assertEqual((done["status"], done["done"]), ("done", str(3 * PAGE)))
        self.assertEqual(guest.peek("one", TARGET + 9, 1024), pattern(7, 4 * PAGE)[5 : 5 + 1024])
        guest.mark_log()
        self.assertEqual(self.run_one(guest, "copy", address=TARGET, other=IOVA, length=16)["status"], "permission")
        guest.wait_log(f"page fault from EP 56 at {IOVA:#x} [W]")
        # It may ask, but nobody has enabled that.
        asks = {"address": IOVA + 4 * PAGE - 8, "other": TARGET, "length": 16, "flags": "page-requests"}
        self.assertEqual(self.run_one(guest, "copy", **asks)["status"], "translation")
        guest.wait_log(f"page fault from EP 56 at {IOVA + 4 * PAGE:#x} [R]")
        ask = self.run_one(guest, "page-request", address=IOVA, length=1, flags="for-read")
        self.assertEqual(ask["status"], "page-requests-disabled")
        self.assert_clean(control)


class PageRequestTest(EngineTest):
    """An engine meets each kind of fault, and the patched driver answers."""

    kernel = staticmethod(lab.patched_kernel)
    shares_machines = True

    @own_machine
    def test_the_driver_enables_ats_and_pri_with_a_fault_queue(self):
        guest, _ = self.start_function()
        guest.run("ioas one")
        guest.run("attach one one")
        self.take_engines(guest)
        pasids = PASID | EXEC | PRIVILEGED
        self.assertEqual(self.register(guest, ENABLED), BUS_MASTER | pasids)
        guest.run("table one one one")
        guest.run("attach-table one one")
        self.assertEqual(self.register(guest, ENABLED), BUS_MASTER | pasids | ATS | PRI)
        # A reset by the driver of user space leaves what the kernel has enabled.
        guest.run("reset one")
        guest.run("engines one")
        self.assertEqual(self.register(guest, ENABLED), BUS_MASTER | pasids | ATS | PRI)

    def test_memory_is_mapped_as_it_is_read_and_written(self):
        guest, control = self.start_attached()
        guest.run(f"buffer one {IOVA:#x} {0x10000:#x} 5")
        length = 6 * PAGE
        self.begin(guest, "copy", address=IOVA + 0x123, other=IOVA + 0x8456, length=length, flags="page-requests")
        # Seven pages of source and seven of target, but for one that both touch.
        guest.run(f"page-in one one 14 {SECONDS}")
        done = self.end(guest)
        self.assertEqual((done["status"], done["done"]), ("done", str(length)))
        self.assertEqual((done["groups"], done["retries"]), ("14", "14"))
        for at in range(0, length, 1024):
            expected = pattern(5, 0x10000)[0x123 + at : 0x123 + at + 1024]
            self.assertEqual(guest.peek("one", IOVA + 0x8456 + at, 1024), expected)
        self.assert_none_outstanding(guest, control)

    def test_groups_arrive_whole_whatever_their_size(self):
        guest, control = self.start_attached()
        for size in (1, 2, 64):
            with self.subTest(size=size):
                self.begin(guest, "page-request", address=IOVA, length=size * PAGE, group=size, flags="for-read,for-write")
                faults = self.faults(guest)
                self.assertEqual([int(fault["address"], 16) for fault in faults], [IOVA + i * PAGE for i in range(size)])
                self.assertEqual({fault["access"] for fault in faults}, {"rw"})
                self.assertEqual(len({fault["cookie"] for fault in faults}), 1)
                self.assertEqual([fault["last"] for fault in faults], ["0"] * (size - 1) + ["1"])
                self.answer(guest, faults[0], "success")
                done = self.end(guest)
                self.assertEqual((done["status"], done["done"], done["groups"]), ("done", str(size), "1"))
        self.assertEqual(self.register(guest, OUTSTANDING_PEAK), 64)
        self.assert_none_outstanding(guest, control)

    def test_a_scatter_list_over_many_pages_is_asked_for_in_one_group(self):
        guest, control = self.start_attached()
        addresses = [IOVA + i * 2 * PAGE + i for i in range(40)]
        guest.run(f"pieces one {LIST:#x} {' '.join(f'{address:#x}:{16}' for address in addresses)}")
        guest.run(f"buffer one {IOVA:#x} {80 * PAGE:#x} 1")
        flags = "page-requests"
        self.begin(guest, "copy", address=LIST, pieces=40, other=TARGET, group=40, flags=flags)
        self.assertEqual(len(guest.lines(f"page-in one one 1 {SECONDS}")), 40)
        done = self.end(guest)
        self.assertEqual((done["status"], done["done"], done["groups"]), ("done", "640", "1"))
        memory = pattern(1, 80 * PAGE)
        expected = b"".join(memory[address - IOVA : address - IOVA + 16] for address in addresses)
        self.assertEqual(guest.peek("one", TARGET, 640), expected)
        self.assert_none_outstanding(guest, control)

    def test_engines_wait_at_the_same_time_and_are_answered_in_any_order(self):
        guest, control = self.start_attached()
        for engine in range(8):
            at = IOVA + engine * PAGE
            self.begin(guest, "copy", engine, address=at, other=TARGET + 16 * engine, length=16, flags="page-requests")
        faults: list[dict[str, str]] = []
        while len(faults) < 8:
            faults += self.faults(guest)
        self.assertEqual(self.register(guest, OUTSTANDING), 8)
        for fault in reversed(sorted(faults, key=lambda fault: int(fault["address"], 16))):
            address = int(fault["address"], 16)
            guest.map("one", address, PAGE, "r", address >> 12 & 0xFF)
            self.answer(guest, fault, "success")
            engine = (address - IOVA) // PAGE
            self.assertEqual(self.end(guest, engine)["status"], "done")
            self.assertEqual(guest.peek("one", TARGET + 16 * engine, 16), pattern(address >> 12 & 0xFF, 16))
        self.assert_none_outstanding(guest, control)

    def test_invalid_request_fails_the_access_and_the_next_one_asks_again(self):
        guest, control = self.start_attached()
        read = {"address": IOVA + 8, "other": TARGET, "length": 8, "flags": "page-requests"}
        self.begin(guest, "copy", **read)
        (fault,) = self.faults(guest)
        self.answer(guest, fault, "invalid")
        failed = self.end(guest)
        self.assertEqual((failed["status"], failed["address"]), ("invalid-request", hex(IOVA + 8)))
        self.begin(guest, "copy", **read)
        (fault,) = self.faults(guest)
        guest.map("one", IOVA, PAGE, "rw", 3)
        self.answer(guest, fault, "success")
        self.assertEqual(self.end(guest)["status"], "done")
        self.assert_none_outstanding(guest, control)

    def test_success_without_a_mapping_is_asked_again_and_not_for_ever(self):
        guest, control = self.start_attached()
        guest.mark_log()
        self.begin(guest, "copy", address=IOVA, other=TARGET, length=8, flags="page-requests")
        for _ in range(16):
            (fault,) = self.faults(guest)
            self.answer(guest, fault, "success")
        failed = self.end(guest)
        self.assertEqual((failed["status"], failed["retries"]), ("retries", "16"))
        guest.wait_log(f"page fault from EP 56 at {IOVA:#x} [R]")
        self.assert_none_outstanding(guest, control)

    @own_machine
    def test_no_more_requests_are_outstanding_than_the_driver_has_allocated(self):
        # The driver allocates what the device says that it lets wait.
        guest, control = self.start_attached("--max-page-requests", "2")
        for engine in range(3):
            self.begin(guest, "copy", engine, address=IOVA + engine * PAGE, other=TARGET, length=8, flags="page-requests")
            if engine < 2:
                self.wait_until("a group", lambda n=engine: control.counters()["page_request_groups_delivered"] == n + 1)
        status = engine_register(2, STATUS)
        self.wait_until("no room", lambda: self.register(guest, status) & 0xFF == WAITING_FOR_ALLOCATION)
        self.assertEqual(self.register(guest, OUTSTANDING), 2)
        refused = self.run_one(guest, "page-request", 3, address=IOVA, length=3 * PAGE, group=3, flags="for-read")
        self.assertEqual(refused["status"], "allocation")
        guest.run(f"buffer one {IOVA:#x} {3 * PAGE:#x} 1")
        guest.run(f"page-in one one 3 {SECONDS}")
        for engine in range(3):
            self.assertEqual(self.end(guest, engine)["status"], "done")
        self.assertEqual(self.register(guest, OUTSTANDING_PEAK), 2)
        self.assert_none_outstanding(guest, control)

    def test_a_detach_ends_groups_and_the_accesses_that_wait_for_them(self):
        guest, control = self.start_attached()
        self.begin(guest, "copy", address=IOVA, other=TARGET, length=8, flags="page-requests")
        (fault,) = self.faults(guest)
        guest.run("detach one")
        # Where it would have been written to, there is nothing any more.
        self.assertIn(self.outcome(guest), ("invalid-request", "translation"))
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        with self.assertRaises(GuestError):
            self.answer(guest, fault, "success")
        guest.run("attach-table one one")
        self.begin(guest, "copy", address=IOVA, other=TARGET, length=8, flags="page-requests")
        guest.run(f"buffer one {IOVA:#x} {PAGE:#x} 1")
        guest.run(f"page-in one one 1 {SECONDS}")
        self.assertEqual(self.end(guest)["status"], "done")
        self.assert_clean(control)

    @own_machine
    def test_page_requests_are_disabled_before_the_attachment_ends__x42(self):
        guest, control = self.start_attached("--max-page-requests", "1")
        read = {"address": IOVA, "other": TARGET, "length": 8, "flags": "page-requests"}
        self.begin(guest, "copy", 0, **read)
        self.assertEqual(len(self.faults(guest)), 1)
        self.begin(guest, "copy", 1, **read)
        status = engine_register(1, STATUS)
        self.wait_until("no room", lambda: self.register(guest, status) & 0xFF == WAITING_FOR_ALLOCATION)
        guest.run("detach one")
        # The second engine would have got the room of the first at the end of the attachment, and asked. It may find
        # that there is no place any more to write its completion to.
        self.assertIn(self.outcome(guest, 1), ("page-requests-disabled", "translation"))
        counters = control.counters()
        self.assertEqual((counters["page_request_groups"], counters["page_request_unwanted"]), (1, 0))
        self.assertFalse(self.register(guest, ENABLED) & PRI)
        guest.run("attach-table one one")
        self.assertTrue(self.register(guest, ENABLED) & PRI)
        self.begin(guest, "copy", **read)
        guest.run(f"buffer one {IOVA:#x} {PAGE:#x} 1")
        guest.run(f"page-in one one 1 {SECONDS}")
        self.assertEqual(self.end(guest)["status"], "done")
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        self.assert_clean(control)

    def test_a_reset_of_the_function_gives_up_what_waits(self):
        guest, control = self.start_attached()
        self.begin(guest, "copy", address=IOVA, other=TARGET, length=8, flags="page-requests")
        (fault,) = self.faults(guest)
        guest.run("reset one")
        guest.run("engines one")
        self.assertEqual(self.register(guest, engine_register(0, STATUS)), 0)
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        # To the IOMMU it is outstanding still, or was ended with the attachment that the reset took away.
        try:
            self.answer(guest, fault, "success")
        except GuestError:
            pass
        self.begin(guest, "copy", address=IOVA, other=TARGET, length=8, flags="page-requests")
        (fault,) = self.faults(guest)
        guest.map("one", IOVA, PAGE, "r", 2)
        self.answer(guest, fault, "success")
        self.assertEqual(self.end(guest)["status"], "done")
        self.assert_clean(control)

    def test_closing_the_device_with_groups_outstanding_leaves_nothing(self):
        guest, control = self.start_attached()
        for engine in range(4):
            self.begin(guest, "copy", engine, address=IOVA, other=TARGET, length=8, flags="page-requests")
        self.wait_until("the groups", lambda: control.counters()["page_request_groups_delivered"] == 4)
        guest.run("close one")
        counters = control.counters()
        self.assertEqual(counters["page_request_groups"], 4)
        guest.run("table-free one")
        guest.run("ioas-free one")
        guest.run(f"open one {FUNCTION}")
        guest.run("ioas one")
        guest.run("table one one one")
        guest.run("attach-table one one")
        self.take_engines(guest)
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        self.assertEqual(self.run_one(guest, "nop")["status"], "done")
        self.assert_clean(control)

    @own_machine
    def test_the_control_socket_shows_what_waits_and_what_is_enabled(self):
        guest, control = self.start_attached()
        self.begin(guest, "copy", 3, address=IOVA, other=TARGET, length=8, flags="page-requests")
        (fault,) = self.faults(guest)
        function = control.execute("endpoint", endpoint=FUNCTION)
        self.assertEqual(set(function["enabled"]), {"bus_master", "ats", "page_requests", "pasid", "exec", "privileged"})
        self.assertEqual(function["page-requests"]["outstanding"], 1)
        states = [engine["state"] for engine in function["bars"]["2"]["engines"]]
        self.assertEqual(states, ["idle"] * 3 + ["waiting for an answer"] + ["idle"] * 4)
        self.answer(guest, fault, "invalid")
        self.assertEqual(self.end(guest, 3)["status"], "invalid-request")
        # A driver that goes leaves nothing enabled.
        for command in ("close one", "table-free one", "ioas-free one", f"unbind {FUNCTION}"):
            guest.run(command)
        device = next(name for name in guest.lines(f"ls {DRIVER}") if name.startswith("virtio"))
        guest.run(f"write {DRIVER}/unbind {device}")
        enabled = set(control.execute("endpoint", endpoint=FUNCTION)["enabled"])
        self.assertEqual(enabled & {"ats", "page_requests", "pasid"}, set())
        self.assert_clean(control)


class MisuseTest(EngineTest):
    """A guest's program uses the engines wrongly, and harms only itself."""

    kernel = staticmethod(lab.patched_kernel)
    shares_machines = True

    def store_loop(self, guest: Guest) -> None:
        """A copy whose next descriptor is itself."""
        self.store(guest, CHAIN, "copy", address=TARGET, other=TARGET + PAGE, length=64, next=CHAIN)

    def start_endless(self, guest: Guest) -> None:
        """Starts the first engine on the chain without a limit to its descriptors."""
        guest.run(f"register one {engine_register(0, LIMIT):#x} 0")
        guest.run(f"start one 0 {CHAIN:#x}")

    def test_descriptors_that_are_not_mapped_are_faults_unless_they_may_be_asked_for(self):
        guest, control = self.start_attached()
        guest.mark_log()
        guest.run(f"start one 0 {IOVA:#x}")
        self.assertEqual(self.outcome(guest), "translation")
        guest.wait_log(f"page fault from EP 56 at {IOVA:#x} [R]")
        guest.run(f"buffer one {IOVA:#x} {PAGE:#x} 0")
        guest.run(f"descriptor one {IOVA:#x} nop")
        guest.run(f"start one 0 {IOVA:#x} page-requests")
        guest.run(f"page-in one one 1 {SECONDS}")
        self.assertEqual(self.outcome(guest), "done")
        self.assert_none_outstanding(guest, control)

    def test_a_chain_in_a_loop_ends_at_its_limit_or_by_a_reset(self):
        guest, control = self.start_attached()
        self.store_loop(guest)
        guest.run(f"start one 0 {CHAIN:#x}")
        self.assertEqual(self.outcome(guest), "limit")
        completed = engine_register(0, COMPLETED)
        self.assertEqual(self.register(guest, completed), 0x10000)
        self.start_endless(guest)
        self.wait_until("it goes round", lambda: self.register(guest, completed) > 0x30000)
        guest.run("engine-reset one 0")
        self.assertEqual(self.register(guest, completed), 0)
        # It is over: what the processor writes now stays.
        guest.run(f"poke one {TARGET + PAGE:#x} {'ab' * 64}")
        self.assertEqual(self.register(guest, completed), 0)
        self.assertEqual(guest.peek("one", TARGET + PAGE, 64), b"\xab" * 64)
        self.assert_none_outstanding(guest, control)

    def test_a_reset_of_the_function_ends_dma_and_so_does_bus_mastering(self):
        guest, control = self.start_attached()
        completed = engine_register(0, COMPLETED)
        self.store_loop(guest)
        for end in ("bus-master one off", "reset one"):
            with self.subTest(end=end):
                self.start_endless(guest)
                self.wait_until("it runs", lambda: self.register(guest, completed) > 1000)
                guest.run(end)
                guest.run(f"poke one {TARGET + PAGE:#x} {'cd' * 64}")
                self.assertEqual(guest.peek("one", TARGET + PAGE, 64), b"\xcd" * 64)
                guest.run("engines one")
                guest.run("engine-reset one 0")
        self.assertEqual(self.run_one(guest, "nop")["status"], "done")
        self.assert_none_outstanding(guest, control)

    def test_bars_move_during_dma(self):
        guest, control = self.start_attached()
        completed = engine_register(0, COMPLETED)
        self.store_loop(guest)
        self.start_endless(guest)
        ident = self.register(guest, 0)
        places = {bar: guest.run(f"config {FUNCTION} {bar:#x}") for bar in BARS}
        for turn in range(20):
            for number, bar in enumerate(BARS):
                guest.run(f"config {FUNCTION} {bar:#x} {NOWHERE_ELSE + (number << 20):#x}")
            # The driver does not find the registers, and the engine goes on.
            self.assertNotEqual(self.register(guest, 0), ident)
            data = bytes([turn + 1]) * 64
            guest.run(f"poke one {TARGET:#x} {data.hex()}")
            self.wait_until("a copy", lambda data=data: guest.peek("one", TARGET + PAGE, 64) == data)
            for bar, place in places.items():
                guest.run(f"config {FUNCTION} {bar:#x} {place}")
            self.assertEqual(self.register(guest, 0), ident)
        self.assertGreater(self.register(guest, completed), 20)
        guest.run("engine-reset one 0")
        self.assertEqual(self.run_one(guest, "nop")["status"], "done")
        self.assert_none_outstanding(guest, control)

    def test_a_translation_is_kept_until_it_is_unmapped_and_no_longer(self):
        guest, control = self.start_attached()
        guest.map("one", IOVA, PAGE, "rw", 4)
        read = {"address": IOVA, "other": TARGET, "length": 8}
        hits = engine_register(0, HITS)
        self.assertEqual(self.run_one(guest, "copy", **read)["status"], "done")
        before = self.register(guest, hits)
        self.assertEqual(self.run_one(guest, "copy", **read)["status"], "done")
        self.assertGreater(self.register(guest, hits), before)
        cached = self.register(guest, engine_register(0, CACHED))
        invalidated = self.register(guest, engine_register(0, INVALIDATED))
        guest.unmap("one", IOVA, PAGE)
        self.assertEqual(self.register(guest, engine_register(0, CACHED)), cached - 1)
        self.assertEqual(self.register(guest, engine_register(0, INVALIDATED)), invalidated + 1)
        self.assertEqual(self.run_one(guest, "copy", **read)["status"], "translation")
        self.assert_none_outstanding(guest, control)


if __name__ == "__main__":
    EngineTest.main()
