# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Shared virtual addressing in a Linux guest, at its ends. Processes die, start other programs or fork; several functions
work for several processes; memory runs out. The requests that the driver of guest/linux/ sends are checked too."""

import re
import struct

from bases.engine import COMPLETED, HITS, OUTSTANDING, STATUS, WAITING_FOR_ALLOCATION, engine_register
from bases.process import (
    CHAINS,
    FUNCTIONS,
    LARGE,
    OTHER,
    PAGE,
    SOURCE,
    TARGET,
    Killed,
    Process,
    ProcessTest,
)
from bases.sharing import own_machine
from lab_kit.vm.control import Control, endpoint_id
from lab_kit.vm.guest import SECONDS, Guest
from lab_kit.vm.requests import ATTACH_TABLE, HEAD, INVALIDATE, PROBE, logged

FIRST, SECOND = FUNCTIONS
HUGE = 0x4000_0000
HUGE_PAGES = "/proc/sys/vm/nr_hugepages"

# Memory that a process leaves to its function, when it takes the rest.
LEFT = 2 << 20

# States of an engine, and its doorbell.
IDLE, RUNNING, WAITING_FOR_AN_ANSWER = range(3)
DOORBELL = 0x08
BLOCKED = 8

# ATTACH_TABLE: the flags that a PASID has which can raise page requests; a format, with its bits for addresses.
PAGE_REQUEST, PASID = 2, 4
X86_64, ARM64 = 0x10, 0x11
INPUT_BITS = {4: 48, 5: 57}


class EndCases(ProcessTest):
    """What the tests of ends have in common."""

    by_turns = True

    def start_copy(self, *options: str, **more) -> tuple[Guest, Control, Process]:
        """A process with memory to copy, and a function for that; others live on when it ends."""
        guest, control = self.start_functions(*options, **more)
        return guest, control, self.make_copy(guest, "one", FIRST)

    def make_copy(self, guest: Guest, name: str, function: str, seed: int = 3) -> Process:
        process = Process(self, guest).fork(name)
        process.share(function)
        process.memory(CHAINS, PAGE)
        process.memory(SOURCE, 16 * PAGE, seed)
        process.memory(TARGET, 16 * PAGE, seed=1)
        return process

    def state(self, guest: Guest, function: str, offset: int) -> int:
        """A register of a function that no process has open."""
        return int(guest.run(f"bar {function} 2 {offset:#x}"), 16)

    def assert_over(self, guest: Guest, control: Control, engines: int = 1) -> None:
        """Asserts that the first function is done with a process that is gone, and good for the next one."""
        fresh = Process(self, guest)
        fresh.memory(OTHER, 4 * LARGE, seed=9)
        for engine in range(engines):
            status = engine_register(engine, STATUS)
            self.wait_until("the end of the chain", lambda at=status: self.state(guest, FIRST, at) & 0xFF == IDLE)
        self.assertEqual(self.state(guest, FIRST, OUTSTANDING), 0)
        self.assertEqual(control.endpoint(FIRST)["pasids"], [])
        self.assertEqual(control.execute("endpoint", endpoint=FIRST)["page-requests"]["outstanding"], 0)
        fresh.verify(OTHER, 4 * LARGE, 9)
        fresh.share()
        fresh.memory(CHAINS, PAGE)
        fresh.memory(TARGET, 4 * PAGE)
        self.assertEqual(fresh.copied(OTHER, TARGET, 4 * PAGE), 4)
        fresh.verify(TARGET, 4 * PAGE, 9)
        self.assert_clean(control)

    def check_large_page(self, process: Process, kind: str, size: int) -> None:
        """One page of that size is asked for once, and is one translation."""
        process.memory(SOURCE, 16 * PAGE, seed=3)
        process.memory(OTHER, size, kind=kind)
        self.assertEqual(process.copied(SOURCE, OTHER + size - 16 * PAGE, 16 * PAGE), 1)
        self.assertEqual(process.copied(SOURCE, OTHER + 77, 8 * PAGE), 0)
        process.verify(OTHER + size - 16 * PAGE, 16 * PAGE, 3)
        process.verify(OTHER + 77, 8 * PAGE, 3)
        self.assertEqual(process.pages(OTHER, PAGE)["large"], size >> 10)
        process.drop(OTHER, size)
        for offset in (77, size // 2, size - PAGE):
            self.assertEqual(process.copy(SOURCE, OTHER + offset, 8)["status"], "invalid-request")


class SharedMemoryEndTest(EndCases):
    """Processes and functions that come and go."""

    def kill_when(self, process: Process, state: int, *engines: int) -> None:
        """Starts engines that copy to untouched memory; the process dies when the last one is in a state."""
        process.memory(OTHER, 256 * PAGE)
        process.memory(OTHER + LARGE, 256 * PAGE, seed=5)
        for engine in engines:
            process.engine("nop", engine)
            process.store(CHAINS + 64 * engine, "copy", address=OTHER + LARGE, other=OTHER, length=256 * PAGE)
        with self.assertRaises(Killed):
            process.run(f"kill-when one {state} {' '.join(map(str, engines))}")

    def test_a_process_dies_while_an_answer_is_due__x80(self):
        guest, control, process = self.start_copy()
        self.kill_when(process, WAITING_FOR_AN_ANSWER, 0)
        self.assert_over(guest, control)

    @own_machine
    def test_a_process_dies_while_an_engine_waits_for_allocation__x80(self):
        guest, control, process = self.start_copy("--max-page-requests", "2")
        self.kill_when(process, WAITING_FOR_ALLOCATION, 0, 1, 2)
        self.assert_over(guest, control, engines=3)

    def test_a_process_dies_in_the_midst_of_a_copy__x80(self):
        guest, control, process = self.start_copy()
        for engine in range(4):
            process.copy_in_circles(SOURCE, TARGET, 16 * PAGE, engine)
        for engine in range(4):
            completed = engine_register(engine, COMPLETED)
            self.wait_until("copies", lambda at=completed: process.register(at) > 20)
        with self.assertRaises(Killed):
            process.run(f"kill-when one {RUNNING} 0")
        self.assert_over(guest, control, engines=4)

    def test_a_process_that_starts_another_program_leaves_the_function_nothing__x80(self):
        guest, control, process = self.start_copy()
        process.copy_in_circles(SOURCE, TARGET, 16 * PAGE)
        process.run("exec")
        # The device is still open, and the new program has memory where the one before it had its own.
        for address in (CHAINS, SOURCE, TARGET):
            process.memory(address, 16 * PAGE, seed=7)
        status = engine_register(0, STATUS)
        for _ in range(2):
            self.wait_until("the end of the chain", lambda: self.state(guest, FIRST, status) & 0xFF == IDLE)
            self.assertEqual(self.state(guest, FIRST, status) >> 8, BLOCKED)
            guest.run(f"bar {FIRST} 2 {engine_register(0, DOORBELL):#x} 1")
        for address in (CHAINS, SOURCE, TARGET):
            process.verify(address, 16 * PAGE, 7)
        process.kill()
        self.assert_over(guest, control)

    def test_a_copy_of_the_process_drives_the_function_in_the_memory_of_the_first(self):
        process, control = self.start_process()
        process.memory(SOURCE, 4 * PAGE, seed=3)
        process.memory(TARGET, 4 * PAGE, seed=1)
        process.store(CHAINS, "copy", address=SOURCE, other=TARGET, length=4 * PAGE)
        copy = process.fork("copy")
        copy.fill(SOURCE, 4 * PAGE, 6)
        copy.store(CHAINS, "nop")
        copy.run(f"start one 0 {CHAINS:#x} {process.pasid} page-requests")
        copy.run(f"wait one 0 {SECONDS}")
        process.verify(TARGET, 4 * PAGE, 3)
        copy.verify(TARGET, 4 * PAGE, 1)
        process.copy_in_circles(SOURCE, TARGET, 4 * PAGE)
        copy.kill()
        # The end of the copy is not the end of the memory.
        completed = process.register(engine_register(0, COMPLETED))
        self.wait_until("copies", lambda: process.register(engine_register(0, COMPLETED)) > completed)
        process.run("engine-reset one 0")
        self.assert_answered(control)

    def test_two_functions_work_on_the_memory_of_a_process__x78(self):
        process, control = self.start_process()
        pasid = process.pasid
        self.assertEqual(process.share(SECOND, "two"), pasid)
        domains = {control.endpoint(function)["pasids"][0]["domain"] for function in FUNCTIONS}
        self.assertEqual(len(domains), 1)
        process.memory(SOURCE, 4 * PAGE, seed=3)
        process.memory(TARGET, 4 * PAGE)
        self.assertEqual(process.copied(SOURCE, TARGET, 4 * PAGE, device="two", engine=1), 4)
        self.assertEqual(process.copied(SOURCE, TARGET, 4 * PAGE), 0)
        process.verify(TARGET, 4 * PAGE, 3)
        process.drop(TARGET, 4 * PAGE)
        process.memory(OTHER, 16 * PAGE, seed=7)
        for engine, device in enumerate(("one", "two")):
            for flags in ("", "page-requests"):
                done = process.copy(SOURCE, TARGET, PAGE, engine=engine, device=device, flags=flags)
                self.assertNotEqual(done["status"], "done")
        process.verify(OTHER, 16 * PAGE, 7)
        process.run("close two")
        self.assertEqual(control.endpoint(SECOND)["pasids"], [])
        self.assertEqual(process.copied(SOURCE, OTHER, PAGE), 0)
        self.assert_answered(control)

    def test_two_processes_have_their_own_memory_at_the_same_addresses(self):
        guest, control = self.start_functions()
        both = [self.make_copy(guest, name, at, 3 + n) for n, (name, at) in enumerate(zip("ab", FUNCTIONS, strict=True))]
        first, second = both
        self.assertNotEqual(first.pasid, second.pasid)
        for seed, process in enumerate(both, 3):
            self.assertEqual(process.copied(SOURCE, TARGET, 16 * PAGE), 0)
            process.verify(TARGET, 16 * PAGE, seed)
        # The PASID of one process is nothing to the function of another.
        self.assertEqual(first.copy(SOURCE, TARGET, PAGE, pasid=second.pasid)["status"], "blocked")
        # What one gives up, the other keeps.
        hits = second.register(engine_register(0, HITS))
        first.drop(TARGET, 16 * PAGE)
        self.assertEqual(first.copy(SOURCE, TARGET, PAGE)["status"], "invalid-request")
        self.assertEqual(second.copied(SOURCE, TARGET, 16 * PAGE), 0)
        self.assertGreaterEqual(second.register(engine_register(0, HITS)), hits + 32)
        first.kill()
        second.fill(TARGET, 16 * PAGE, 0)
        self.assertEqual(second.copied(SOURCE, TARGET, 16 * PAGE), 0)
        second.verify(TARGET, 16 * PAGE, 4)
        second.kill()
        self.assertEqual(control.counters()["page_response_stale"], 0)
        self.assert_clean(control)

    def test_pages_of_2_mib_are_set_aside_for_the_process__x78(self):
        process, control = self.start_process()
        process.run(f"write {HUGE_PAGES} 2")
        self.check_large_page(process, "hugetlb-2m", LARGE)
        process.run(f"write {HUGE_PAGES} 0")
        self.assert_answered(control)


class HugePageTest(EndCases):
    """A process with a page of 1 GiB."""

    memory = "2560M"

    def test_a_page_of_1_gib_is_set_aside_for_the_process__x78(self):
        process, control = self.start_process(command_line="hugepagesz=1G hugepages=1")
        self.check_large_page(process, "hugetlb-1g", HUGE)
        self.assert_answered(control)


class WithoutMemoryTest(EndCases):
    """A process lets a function write more than the machine has memory."""

    memory = "256M"
    swaps = False
    # The kernel says at length why it kills a process.
    known_trouble = re.compile("invoked oom-killer.*?Out of memory: Killed process", re.DOTALL)

    def test_a_function_that_takes_all_memory_is_the_end_of_its_process(self):
        guest, control, process = self.start_copy()
        # It may promise more than it has.
        guest.run("write /proc/sys/vm/overcommit_memory 1")
        process.memory(OTHER, 512 << 20)
        (available,) = (line.split()[1] for line in guest.lines("cat /proc/meminfo") if line.startswith("MemAvailable:"))
        taken = (int(available) >> 10 << 20) - LEFT
        process.advise(OTHER, taken, "populate")
        # A page request can be refused before the process ends, and then another command finds that out.
        with self.assertRaises(Killed):
            for offset in range(taken, 512 << 20, 16 * PAGE):
                process.copy(SOURCE, OTHER + offset, 16 * PAGE, group=4)
        self.assertTrue(guest.lines("log Out of memory: Killed process"))
        self.assert_over(guest, control)


class RequestTest(EndCases):
    """The driver sends the right bytes."""

    # The format of the processor's tables.
    table_format = X86_64
    # Whether it says what its entries' indices of attributes mean.
    has_attributes = False

    def test_tables_are_asked_for_as_the_endpoint_has_them__x72_x92_x93_x100(self):
        process, control = self.start_process("--log-level", "trace")
        process.memory(SOURCE, 4 * PAGE, seed=3)
        process.memory(TARGET, 4 * PAGE)
        process.copied(SOURCE, TARGET, 4 * PAGE)
        process.drop(TARGET, 4 * PAGE)
        self.assertLessEqual({"ATTACH_TABLE", "PROBE"}, set(control.status()["features"]))
        requests = [request for request, _ in logged(self.directory / "backend.log")]
        probed = {struct.unpack_from("<I", request, HEAD)[0] for request in requests if request[0] == PROBE}
        attached = [request for request in requests if request[0] == ATTACH_TABLE]
        self.assertTrue(attached)
        for request in attached:
            _, endpoint, flags, pasid, form, bits, granule, table, attributes = struct.unpack_from("<4IH2B2Q", request, HEAD)
            self.assertIn(endpoint, probed)
            self.assertEqual((endpoint, flags, pasid), (endpoint_id(FIRST), PAGE_REQUEST | PASID, process.pasid))
            expected = (self.table_format, INPUT_BITS[self.levels], 12, 0)
            self.assertEqual((form, bits, granule, table % PAGE), expected)
            self.assertEqual((attributes != 0, request[40:]), (self.has_attributes, bytes(20)), request.hex())
        removed = [request for request in requests if request[0] == INVALIDATE]
        ranges = []
        for request in removed:
            _, first, last, flags = struct.unpack_from("<I2QI", request, HEAD)
            self.assertLessEqual(first, last)
            self.assertEqual(flags, 0, request.hex())
            ranges.append((first, last))
        self.assertTrue(any(first <= TARGET and last >= TARGET + 4 * PAGE - 1 for first, last in ranges), ranges)


if __name__ == "__main__":
    ProcessTest.main()
