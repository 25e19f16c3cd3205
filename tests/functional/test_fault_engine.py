# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The fault engine in a Linux guest with the driver of guest/linux/: page requests and PASIDs of real DMA.

A program in the guest drives it over VFIO and iommufd; see docs/fault-engine.md and guest/README.md.
"""

import pathlib

from harness import lab
from harness.control import Control
from harness.guest import Guest, GuestError, pattern
from harness.machine import ENDPOINTS
from harness.testcase import FunctionalTest

FUNCTION = "00:07.0"
PAGE = 0x1000

# The address space "one": descriptors, memory that is mapped, and what is not.
CHAIN = 0x10_0000
LIST = 0x10_4000
TARGET = 0x10_8000
CHAIN_LENGTH = 0x2_0000
IOVA = 0x40_0000

# Registers: of the function, and of an engine.
ENABLED, OUTSTANDING, OUTSTANDING_PEAK = 0x0C, 0x10, 0x14
STATUS, COMPLETED, GROUPS, MARKERS, HITS, INVALIDATED, CACHED = 0x04, 0x24, 0x40, 0x4C, 0x50, 0x58, 0x5C

# ENABLED.
BUS_MASTER, ATS, PRI, PASID, EXEC, PRIVILEGED = (1 << bit for bit in range(6))
WAITING_FOR_ALLOCATION = 3


def fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split())


def engine_register(engine: int, offset: int) -> int:
    return 0x100 + 0x100 * engine + offset


class EngineTest(FunctionalTest):
    """A guest with one software function, opened under the name "one"."""

    def start_function(self, *options: str) -> tuple[Guest, Control]:
        """A back-end with the function, a machine, the driver, and the function open."""
        socket = self.directory / "function.sock"
        backend = self.start_backend("--page-response-timeout", "0", *options, endpoints=(*ENDPOINTS, f"{FUNCTION},soft={socket}"))
        machine = self.start_machine(backend, functions={FUNCTION: socket})
        machine.guest.load("virtio_iommu")
        machine.guest.open_vfio("one", FUNCTION)
        return machine.guest, backend.control

    def take_engines(self, guest: Guest) -> None:
        """Memory for descriptors, and the interrupts of the engines."""
        guest.map("one", CHAIN, CHAIN_LENGTH, "rw", 0)
        guest.run("engines one")

    def start_attached(self, *options: str, pasids: bool = False) -> tuple[Guest, Control]:
        """The function in the address space "one", with a fault queue."""
        guest, control = self.start_function(*options)
        guest.run("ioas one")
        guest.run(f"table one one one {'pasids' if pasids else ''}")
        guest.run("attach-table one one")
        self.take_engines(guest)
        return guest, control

    def register(self, guest: Guest, offset: int) -> int:
        return int(guest.run(f"register one {offset:#x}"), 16)

    def store(self, guest: Guest, at: int, operation: str, **values: object) -> None:
        words = (f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value}" for name, value in values.items())
        guest.run(f"descriptor one {at:#x} {operation} {' '.join(words)}")

    def begin(self, guest: Guest, operation: str, engine: int = 0, **values: object) -> None:
        """Starts an engine on a chain of one descriptor, at a place of its own."""
        at = CHAIN + 64 * engine
        self.store(guest, at, operation, **values)
        guest.run(f"start one {engine} {at:#x}")

    def end(self, guest: Guest, engine: int = 0) -> dict[str, str]:
        """Waits for the end of such a chain: the completion of its descriptor."""
        outcome = fields(guest.run(f"wait one {engine} 20"))["outcome"]
        completion = fields(guest.run(f"completion one {CHAIN + 64 * engine:#x}"))
        self.assertEqual(completion["status"], outcome)
        return completion

    def run_one(self, guest: Guest, operation: str, engine: int = 0, **values: object) -> dict[str, str]:
        self.begin(guest, operation, engine, **values)
        return self.end(guest, engine)

    def outcome(self, guest: Guest, engine: int = 0) -> str:
        """How a chain ended whose descriptor cannot say it."""
        return fields(guest.run(f"wait one {engine} 20"))["outcome"]

    def faults(self, guest: Guest, table: str = "one") -> list[dict[str, str]]:
        return [fields(line) for line in guest.lines(f"faults {table} 20")]

    def answer(self, guest: Guest, fault: dict[str, str], code: str, table: str = "one") -> None:
        guest.run(f"answer {table} {fault['cookie']} {code}")

    def assert_none_outstanding(self, guest: Guest, control: Control) -> None:
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        self.assertEqual(control.counters()["page_response_stale"], 0)
        self.assert_clean(control)


class StockDriverTest(EngineTest):
    """The driver as it is in Linux knows neither page requests nor PASIDs, and enables nothing."""

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
    kernel = staticmethod(lab.patched_kernel)

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
        guest.run("page-in one one 14 20")
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
        self.assertEqual(len(guest.lines("page-in one one 1 20")), 40)
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
        guest.run("page-in one one 3 20")
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
        guest.run("page-in one one 1 20")
        self.assertEqual(self.end(guest)["status"], "done")
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


class MisuseTest(EngineTest):
    kernel = staticmethod(lab.patched_kernel)

    def test_descriptors_that_are_not_mapped_are_faults_unless_they_may_be_asked_for(self):
        guest, control = self.start_attached()
        guest.mark_log()
        guest.run(f"start one 0 {IOVA:#x}")
        self.assertEqual(self.outcome(guest), "translation")
        guest.wait_log(f"page fault from EP 56 at {IOVA:#x} [R]")
        guest.run(f"buffer one {IOVA:#x} {PAGE:#x} 0")
        guest.run(f"descriptor one {IOVA:#x} nop")
        guest.run(f"start one 0 {IOVA:#x} page-requests")
        guest.run("page-in one one 1 20")
        self.assertEqual(self.outcome(guest), "done")
        self.assert_none_outstanding(guest, control)

    def test_a_chain_in_a_loop_ends_at_its_limit_or_by_a_reset(self):
        guest, control = self.start_attached()
        self.store(guest, CHAIN, "copy", address=TARGET, other=TARGET + PAGE, length=64, next=CHAIN)
        guest.run(f"start one 0 {CHAIN:#x}")
        self.assertEqual(self.outcome(guest), "limit")
        limit, completed = engine_register(0, 0x1C), engine_register(0, COMPLETED)
        self.assertEqual(self.register(guest, completed), 0x10000)
        guest.run(f"register one {limit:#x} 0")
        guest.run(f"start one 0 {CHAIN:#x}")
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
        limit, completed = engine_register(0, 0x1C), engine_register(0, COMPLETED)
        self.store(guest, CHAIN, "copy", address=TARGET, other=TARGET + PAGE, length=64, next=CHAIN)
        for end in ("bus-master one off", "reset one"):
            with self.subTest(end=end):
                guest.run(f"register one {limit:#x} 0")
                guest.run(f"start one 0 {CHAIN:#x}")
                self.wait_until("it runs", lambda: self.register(guest, completed) > 1000)
                guest.run(end)
                guest.run(f"poke one {TARGET + PAGE:#x} {'cd' * 64}")
                self.assertEqual(guest.peek("one", TARGET + PAGE, 64), b"\xcd" * 64)
                guest.run("engines one")
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
        guest.unmap("one", IOVA, PAGE)
        self.assertEqual(self.register(guest, engine_register(0, CACHED)), cached - 1)
        self.assertEqual(self.register(guest, engine_register(0, INVALIDATED)), 1)
        self.assertEqual(self.run_one(guest, "copy", **read)["status"], "translation")
        self.assert_none_outstanding(guest, control)


class PasidTest(EngineTest):
    kernel = staticmethod(lab.patched_kernel)

    def start_with_pasids(self, *pasids: int) -> tuple[Guest, Control]:
        """Each PASID has an address space of its own, under its number."""
        guest, control = self.start_attached(pasids=True)
        for pasid in pasids:
            guest.run(f"ioas {pasid}")
            guest.run(f"table {pasid} one {pasid} pasids")
            guest.run(f"attach-pasid one {pasid} {pasid}")
        return guest, control

    def test_each_pasid_has_its_own_memory_at_the_same_address(self):
        guest, control = self.start_with_pasids(5, 0xFFFFF)
        attached = control.endpoint(FUNCTION)["pasids"]
        self.assertEqual([entry["pasid"] for entry in attached], [5, 0xFFFFF])
        for seed, space in enumerate(("one", "5", str(0xFFFFF))):
            guest.map(space, IOVA, PAGE, "rw", seed)
        for seed, flags in enumerate(({}, {"pasid": 5, "flags": "pasid"}, {"pasid": 0xFFFFF, "flags": "pasid"})):
            done = self.run_one(guest, "read", address=IOVA, length=64, **flags)
            self.assertEqual(done["status"], "done")
            self.assertEqual(self.run_one(guest, "write", address=TARGET, length=64)["status"], "done")
            self.assertEqual(guest.peek("one", TARGET, 64), pattern(seed, 64))
        # Writing with a PASID reaches its memory, and no other.
        self.run_one(guest, "read", address=TARGET, length=64)
        guest.run(f"poke one {TARGET:#x} {'5a' * 64}")
        self.run_one(guest, "read", address=TARGET, length=64)
        self.run_one(guest, "write", address=IOVA, length=64, pasid=5, flags="pasid")
        self.assertEqual(guest.peek("5", IOVA, 64), b"\x5a" * 64)
        self.assertEqual(guest.peek("one", IOVA, 64), pattern(0, 64))
        self.assert_none_outstanding(guest, control)

    def test_page_requests_carry_the_pasid_and_every_kind_of_access(self):
        guest, control = self.start_with_pasids(7)
        kinds = {
            "pasid": ("read", "r"),
            "pasid,exec": ("read", "rx"),
            "pasid,privileged": ("read", "rp"),
            "pasid,exec,privileged": ("read", "rxp"),
            "pasid,privileged,page-requests": ("write", "wp"),
        }
        for index, (flags, (operation, access)) in enumerate(kinds.items()):
            with self.subTest(flags=flags):
                at = IOVA + index * PAGE
                self.begin(guest, operation, address=at, length=32, pasid=7, flags=f"{flags},page-requests")
                (fault,) = self.faults(guest, "7")
                self.assertEqual((fault["pasid"], fault["access"]), ("7", access))
                guest.map("7", at, PAGE, "rw", index)
                self.answer(guest, fault, "success", "7")
                self.assertEqual(self.end(guest)["status"], "done")
        self.assert_none_outstanding(guest, control)

    def test_a_detach_of_a_pasid_ends_its_groups_and_no_others(self):
        guest, control = self.start_with_pasids(7, 8)
        for engine, pasid in enumerate((7, 8)):
            ask = {"address": IOVA, "length": 8, "pasid": pasid, "flags": "pasid,page-requests"}
            self.begin(guest, "read", engine, **ask)
        self.begin(guest, "read", 2, address=IOVA, length=8, flags="page-requests")
        (of_8,), (plain,) = self.faults(guest, "8"), self.faults(guest)
        guest.run("detach-pasid one 7")
        # Its descriptor is in the address space without a PASID.
        self.assertEqual(self.end(guest, 0)["status"], "invalid-request")
        guest.map("8", IOVA, PAGE, "r", 1)
        self.answer(guest, of_8, "success", "8")
        self.assertEqual(self.end(guest, 1)["status"], "done")
        guest.map("one", IOVA, PAGE, "r", 1)
        self.answer(guest, plain, "success")
        self.assertEqual(self.end(guest, 2)["status"], "done")
        guest.mark_log()
        gone = self.run_one(guest, "read", address=IOVA, length=8, pasid=7, flags="pasid")
        self.assertEqual(gone["status"], "blocked")
        guest.wait_log(f"domain fault from EP 56 at {IOVA:#x} [R]")
        guest.run("attach-pasid one 7 7")
        guest.map("7", IOVA, PAGE, "r", 1)
        again = self.run_one(guest, "read", address=IOVA, length=8, pasid=7, flags="pasid")
        self.assertEqual(again["status"], "done")
        self.assertEqual(self.register(guest, OUTSTANDING), 0)
        self.assert_clean(control)

    def test_descriptors_can_live_in_the_memory_of_a_pasid(self):
        guest, control = self.start_with_pasids(9)
        guest.run(f"buffer 9 {IOVA:#x} {PAGE:#x} 0")
        guest.run(f"descriptor 9 {IOVA:#x} nop")
        guest.run(f"start one 0 {IOVA:#x} 9 page-requests")
        self.assertIn("access=r ", guest.lines("page-in 9 9 1 20")[0])
        self.assertEqual(self.outcome(guest), "done")
        self.assertEqual(fields(guest.run(f"completion 9 {IOVA:#x}"))["status"], "done")
        self.assert_none_outstanding(guest, control)

    def test_a_stop_marker_is_seen_by_nobody(self):
        guest, control = self.start_with_pasids(7)
        done = self.run_one(guest, "stop-marker", pasid=7, flags="pasid")
        self.assertEqual((done["status"], done["groups"]), ("done", "0"))
        self.assertEqual(self.register(guest, engine_register(0, MARKERS)), 1)
        self.assertEqual(control.counters()["page_request_groups"], 0)
        self.assert_none_outstanding(guest, control)
