# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Shared virtual addressing in a Linux guest with the driver of guest/linux/. A software function works on the memory of a
process, with the process's page table. Whatever the kernel does with that memory, the function sees what the
process sees, and reaches nothing else."""

from bases.engine import HITS, INVALIDATED, engine_register
from bases.process import DISK, LARGE, OTHER, PAGE, SOURCE, TARGET, Process, ProcessTest
from lab_kit.vm.control import Control

# No process has these: where the kernel's text begins; what is no address with four levels; with five.
KERNEL_TEXT = 0xFFFF_FFFF_8100_0000
BEHIND_FOUR_LEVELS, BEHIND_FIVE_LEVELS = 0x0000_9000_0000_0000, 0x9000_0000_0000_0000
# An address that takes five levels.
FAR = 0x00F0_0000_0000_0000

# How an access ends that nobody is asked about.
ABORTED = ("translation", "permission")
ROUNDS = 60


class SharedMemoryTest(ProcessTest):
    """A process and its kernel change memory while a function works on it."""

    # Whether the table of a process has entries of the kernel's memory, too.
    kernel_is_in_table = True
    # What a table of four levels cannot have.
    behind: tuple[int, ...] = (BEHIND_FOUR_LEVELS, FAR)

    def start_copying(self, pages: int = 4) -> tuple[Process, Control]:
        """A process with a source that is filled with pattern 3, and a target that is there, with pattern 1."""
        process, control = self.start_process()
        process.memory(SOURCE, pages * PAGE, seed=3)
        process.memory(TARGET, pages * PAGE, seed=1)
        return process, control

    def keep(self, process: Process, source: int, target: int, length: int) -> None:
        """Has both caches keep translations, the function's and the IOMMU's."""
        process.copied(source, target, length)
        process.copied(source, target, length, flags="untranslated")

    def assert_gone(self, process: Process, control: Control, address: int, write: bool = False) -> None:
        """Asserts that nothing is at an address: page requests are refused, and without them nothing is found."""
        before = control.counters()["page_request_groups"]
        where = (SOURCE, address) if write else (address, SOURCE)
        self.assertEqual(process.copy(*where, PAGE)["status"], "invalid-request")
        self.assertEqual(control.counters()["page_request_groups"], before + 1)
        for flags in ("", "untranslated"):
            self.assertIn(process.copy(*where, PAGE, flags=flags)["status"], ABORTED)

    def test_untouched_memory_is_there_when_the_function_needs_it__x79(self):
        process, control = self.start_process()
        process.memory(SOURCE, 64 * PAGE, seed=3)
        process.memory(TARGET, 64 * PAGE)
        invalidated = control.counters()["invalidate"]
        self.assertEqual(process.copied(SOURCE, TARGET, 64 * PAGE), 64)
        # What the kernel has added, it has not invalidated: not each of 64 pages. The program has memory besides, which may
        # change meanwhile, and Linux on Arm makes one entry of 16 pages and invalidates those.
        self.assertLess(control.counters()["invalidate"], invalidated + 16)
        process.verify(TARGET, 64 * PAGE, 3)
        self.assertEqual(process.copied(SOURCE, TARGET, 64 * PAGE), 0)
        # As many at a time as the function likes.
        process.memory(OTHER, 64 * PAGE)
        asked = process.engine("page-request", address=OTHER, length=64 * PAGE, group=64, flags="for-read,for-write")
        self.assertEqual((asked["status"], asked["groups"]), ("done", "1"))
        self.assertEqual(process.copied(SOURCE, OTHER, 64 * PAGE), 0)
        process.verify(OTHER, 64 * PAGE, 3)
        self.assert_answered(control)

    def test_untouched_memory_is_read_as_zeros_and_can_be_written_then__x78(self):
        process, control = self.start_copying()
        process.memory(OTHER, 4 * PAGE)
        self.assertEqual(process.copied(OTHER, TARGET, 4 * PAGE), 4)
        process.verify_zeros(TARGET, 4 * PAGE)
        # The page of zeros is everybody's, so another comes in its place.
        self.assertEqual(process.copied(SOURCE, OTHER, 4 * PAGE), 4)
        process.verify(OTHER, 4 * PAGE, 3)
        self.assertEqual(process.copied(OTHER, TARGET, 4 * PAGE), 0)
        process.verify(TARGET, 4 * PAGE, 3)
        self.assert_answered(control)

    def test_memory_is_copied_on_write_where_another_process_has_it_too__x78(self):
        process, control = self.start_copying(8)
        self.assertEqual(process.copied(SOURCE, TARGET, PAGE), 0)
        process.fill(TARGET, 8 * PAGE, 9)
        copy = process.fork("copy")
        self.assertEqual(process.copied(SOURCE, TARGET, 8 * PAGE, group=4), 2)
        process.verify(TARGET, 8 * PAGE, 3)
        copy.verify(TARGET, 8 * PAGE, 9)
        # What the copy writes is its own.
        copy.fill(SOURCE, 8 * PAGE, 77)
        process.fill(TARGET, 8 * PAGE, 0)
        process.copied(SOURCE, TARGET, 8 * PAGE)
        process.verify(TARGET, 8 * PAGE, 3)
        self.assert_answered(control)

    def test_memory_permits_the_function_what_it_permits_the_process__x78(self):
        process, control = self.start_copying()
        self.keep(process, SOURCE, TARGET, PAGE)
        process.fill(TARGET, PAGE, 5)
        process.protect(TARGET, PAGE, "r")
        self.assert_gone(process, control, TARGET, write=True)
        process.verify(TARGET, PAGE, 5)
        self.keep(process, TARGET, SOURCE, PAGE)
        process.verify(SOURCE, PAGE, 5)
        process.protect(TARGET, PAGE, "none")
        self.assert_gone(process, control, TARGET)
        process.protect(TARGET, PAGE, "rw")
        process.fill(SOURCE, PAGE, 6)
        process.copied(SOURCE, TARGET, PAGE)
        process.verify(TARGET, PAGE, 6)
        self.assert_answered(control)

    def test_memory_that_is_gone_is_not_reached__x78(self):
        process, control = self.start_copying()
        self.keep(process, TARGET, SOURCE, PAGE)
        self.keep(process, SOURCE, TARGET, PAGE)
        process.drop(TARGET, 4 * PAGE)
        # What was freed last is what is taken first.
        process.memory(OTHER, 16 * PAGE, seed=7)
        self.assert_gone(process, control, TARGET)
        self.assert_gone(process, control, TARGET, write=True)
        process.verify(OTHER, 16 * PAGE, 7)
        # Other memory in its place is other memory.
        process.memory(TARGET, PAGE, seed=8)
        self.assertEqual(process.copied(TARGET, SOURCE, PAGE), 0)
        process.verify(SOURCE, PAGE, 8)
        self.assert_answered(control)

    def test_memory_that_was_discarded_is_new__x78(self):
        process, control = self.start_copying()
        self.keep(process, SOURCE, TARGET, 4 * PAGE)
        process.advise(TARGET, 4 * PAGE, "dontneed")
        process.memory(OTHER, 16 * PAGE, seed=7)
        for flags in ("", "untranslated"):
            self.assertIn(process.copy(SOURCE, TARGET, PAGE, flags=flags)["status"], ABORTED)
        process.verify(OTHER, 16 * PAGE, 7)
        self.assertEqual(process.copied(TARGET, SOURCE, 4 * PAGE), 4)
        process.verify_zeros(SOURCE, 4 * PAGE)
        self.assert_answered(control)

    def test_memory_that_was_moved_is_at_its_new_address_only__x78(self):
        process, control = self.start_copying()
        self.keep(process, SOURCE, TARGET, 4 * PAGE)
        process.run(f"move {TARGET:#x} {4 * PAGE:#x} {OTHER:#x}")
        self.assert_gone(process, control, TARGET)
        self.assert_gone(process, control, TARGET, write=True)
        process.fill(SOURCE, 4 * PAGE, 0)
        self.assertEqual(process.copied(OTHER, SOURCE, 4 * PAGE), 0)
        process.verify(SOURCE, 4 * PAGE, 3)
        self.assert_answered(control)

    def test_a_large_page_is_one_translation_until_it_has_a_hole__x78(self):
        process, control = self.start_copying(16)
        process.memory(OTHER, 2 * LARGE)
        process.advise(OTHER, 2 * LARGE, "hugepage")
        self.assertEqual(process.copied(SOURCE, OTHER + 1000, PAGE), 1)
        process.verify(OTHER + 1000, PAGE, 3)
        self.assertEqual(process.pages(OTHER, LARGE), {"present": 512, "swapped": 0, "large": LARGE >> 10})
        hole = OTHER + 0x10_5000
        self.assertEqual(process.copied(SOURCE, hole - PAGE, 3 * PAGE), 0)
        self.assertEqual(process.copied(SOURCE, OTHER + LARGE - 16 * PAGE, 16 * PAGE), 0)
        process.verify(OTHER + LARGE - 16 * PAGE, 16 * PAGE, 3)
        self.keep(process, SOURCE, hole - PAGE, PAGE)
        self.keep(process, SOURCE, hole, PAGE)
        process.drop(hole, PAGE)
        self.assert_gone(process, control, hole)
        self.assert_gone(process, control, hole, write=True)
        # What was kept for the page before the hole was a translation of the hole too.
        self.assertEqual(process.copy(hole - PAGE, SOURCE, 2 * PAGE)["status"], "invalid-request")
        self.assertEqual(process.copy(SOURCE, hole - PAGE, 2 * PAGE)["status"], "invalid-request")
        for beside in (OTHER, hole - PAGE, hole + PAGE, OTHER + LARGE - PAGE):
            self.assertEqual(process.copied(SOURCE, beside, PAGE), 0)
            process.verify(beside, PAGE, 3)
        self.assert_answered(control)

    def test_memory_of_a_file_is_the_file_and_ends_with_it__x78(self):
        process, control = self.start_copying(8)
        process.memory(OTHER, 8 * PAGE, kind="file")
        copy = process.fork("copy")
        self.assertEqual(process.copied(SOURCE, OTHER, 8 * PAGE, group=4), 2)
        copy.verify(OTHER, 8 * PAGE, 3)
        copy.fill(OTHER, 8 * PAGE, 4)
        process.copied(OTHER, TARGET, 8 * PAGE)
        process.verify(TARGET, 8 * PAGE, 4)
        self.keep(process, SOURCE, OTHER + 4 * PAGE, PAGE)
        copy.run(f"truncate {OTHER:#x} {4 * PAGE:#x}")
        self.assert_gone(process, control, OTHER + 4 * PAGE)
        self.assert_gone(process, control, OTHER + 4 * PAGE, write=True)
        self.assertEqual(process.copied(OTHER, TARGET, 4 * PAGE), 0)
        # What comes back is zeros.
        copy.run(f"truncate {OTHER:#x} {8 * PAGE:#x}")
        process.copied(OTHER, TARGET, 8 * PAGE)
        process.verify(TARGET, 4 * PAGE, 4)
        process.verify_zeros(TARGET + 4 * PAGE, 4 * PAGE)
        self.assert_answered(control)

    def test_what_the_function_writes_after_the_kernel_has_saved_it_is_saved_again__x78(self):
        process, control = self.start_copying(8)
        process.memory(OTHER, 8 * PAGE, kind=f"/dev/{DISK}")
        for seed in (3, 4, 5):
            process.fill(SOURCE, 8 * PAGE, seed)
            process.copied(SOURCE, OTHER, 8 * PAGE, group=4)
            process.run(f"sync {OTHER:#x} {8 * PAGE:#x}")
            process.run(f"disk-verify {DISK} 0 {8 * PAGE} {seed}")
        self.assert_answered(control)

    def test_what_the_function_has_written_comes_back_from_swap__x78(self):
        process, control = self.start_copying(32)
        process.may_go(TARGET, 32 * PAGE, "pageout")
        self.assertEqual(process.pages(TARGET, 32 * PAGE), {"present": 0, "swapped": 32, "large": 0})
        self.assertEqual(process.copied(SOURCE, TARGET, 32 * PAGE), 32)
        # A translation for reading is kept, with a copy in swap that is as new; then the function writes.
        process.copied(TARGET, SOURCE, 32 * PAGE)
        process.fill(SOURCE, 32 * PAGE, 4)
        self.keep(process, SOURCE, TARGET, 32 * PAGE)
        process.may_go(TARGET, 32 * PAGE, "pageout")
        self.assertEqual(process.pages(TARGET, 32 * PAGE)["present"], 0)
        self.assertIn(process.copy(TARGET, SOURCE, PAGE, flags="")["status"], ABORTED)
        process.fill(SOURCE, 32 * PAGE, 0)
        process.copied(TARGET, SOURCE, 32 * PAGE)
        process.verify(SOURCE, 32 * PAGE, 4)
        process.verify(TARGET, 32 * PAGE, 4)
        self.assert_answered(control)

    def test_what_the_function_writes_into_memory_that_may_go_stays__x78(self):
        """MADV_FREE: the kernel drops what nobody has written since. Only DIRTY in the table tells it of the function."""
        process, control = self.start_copying(32)
        half = 16 * PAGE
        for number, before in enumerate(("nothing", "a read", "a write")):
            with self.subTest(before=before):
                at = OTHER + number * LARGE
                process.memory(at, 32 * PAGE, seed=1)
                if before == "a write":
                    process.copied(SOURCE + PAGE, at, half)
                process.may_go(at, 32 * PAGE, "free")
                if before == "a read":
                    process.copied(at, TARGET, half)
                process.copied(SOURCE, at, half)
                process.may_go(at, 32 * PAGE, "pageout")
                process.verify(at, half, 3)
                # What nobody has written is gone, or this would prove nothing.
                process.verify_zeros(at + half, half)
        self.assert_answered(control)

    def test_addresses_of_no_process_are_refused(self):
        process, control = self.start_copying()
        process.copied(SOURCE, TARGET, PAGE)
        # Of the kernel's memory there are entries, which are not for a process. The kernel is asked, and refuses.
        kernel = ((KERNEL_TEXT, TARGET), (SOURCE, KERNEL_TEXT)) if self.kernel_is_in_table else ()
        for where in kernel:
            self.assertEqual(process.copy(*where, PAGE)["status"], "invalid-request")
            self.assertEqual(process.copy(*where, PAGE, flags="untranslated")["status"], "permission")
        # What no table of that many levels can have, it is not asked for.
        asked = control.counters()["page_request_groups"]
        for address in (BEHIND_FIVE_LEVELS, 0x8000_0000_0000_0000, *(self.behind if self.levels == 4 else ())):
            for where in ((address, TARGET), (SOURCE, address)):
                with self.subTest(where=[hex(one) for one in where]):
                    self.assertIn(process.copy(*where, PAGE)["status"], ABORTED)
        self.assertEqual(control.counters()["page_request_groups"], asked)
        process.verify(TARGET, PAGE, 3)
        if self.levels == 5:
            process.memory(FAR, PAGE)
            self.assertEqual(process.copied(SOURCE, FAR, PAGE), 1)
            process.verify(FAR, PAGE, 3)
        self.assert_answered(control)

    def test_code_is_fetched_where_the_process_may_run_it_and_nothing_is_privileged(self):
        process, control = self.start_copying()
        fetch = {"address": OTHER, "length": PAGE}
        process.memory(OTHER, PAGE, seed=7)
        # A translation for reading is there; it is none for this.
        self.assertEqual(process.engine("read", **fetch)["status"], "done")
        self.assertEqual(process.engine("read", flags="exec,page-requests", **fetch)["status"], "invalid-request")
        process.protect(OTHER, PAGE, "rwx")
        self.assertEqual(process.engine("read", flags="exec,page-requests", **fetch)["status"], "done")
        process.protect(OTHER, PAGE, "rw")
        self.assertEqual(process.engine("read", flags="exec,page-requests", **fetch)["status"], "invalid-request")
        asked = control.counters()["page_request_groups"]
        for operation in ("read", "write"):
            done = process.engine(operation, flags="privileged,page-requests", **fetch)
            self.assertIn(done["status"], ABORTED)
        self.assertEqual(control.counters()["page_request_groups"], asked)
        self.assert_answered(control)

    def test_a_function_that_is_at_work_does_not_reach_what_is_taken_from_it__x78(self):
        process, control = self.start_copying()
        for kind in ("discard", "remap", "protect", "move"):
            with self.subTest(kind=kind):
                process.copy_in_circles(SOURCE, TARGET, PAGE)
                process.run(f"churn one 0 {kind} {TARGET:#x} {PAGE:#x} {ROUNDS}")
                process.run("engine-reset one 0")
        self.assertEqual(control.counters()["page_response_stale"], 0)
        self.assert_clean(control)

    def test_pages_of_the_table_come_and_go_while_the_function_is_at_work__x78(self):
        process, control = self.start_copying()
        process.memory(OTHER, LARGE)
        process.advise(OTHER, LARGE, "hugepage")
        process.fill(OTHER, LARGE, 1)
        process.copy_in_circles(SOURCE, OTHER + LARGE // 2 + PAGE, 3 * PAGE)
        process.run(f"churn one 0 split {OTHER:#x} {LARGE:#x} {ROUNDS // 4}")
        process.run("engine-reset one 0")
        process.verify(OTHER + LARGE // 2 + PAGE, 3 * PAGE, 3)
        self.assert_answered(control)

    def test_a_translation_is_kept_while_nothing_changes(self):
        process, control = self.start_copying()
        process.copied(SOURCE, TARGET, 4 * PAGE)
        hits, invalidated = (engine_register(0, register) for register in (HITS, INVALIDATED))
        before = process.register(hits)
        process.copied(SOURCE, TARGET, 4 * PAGE)
        self.assertGreaterEqual(process.register(hits), before + 8)
        # What changes is one page.
        gone = process.register(invalidated)
        process.advise(TARGET, PAGE, "dontneed")
        self.assertEqual(process.register(invalidated), gone + 1)
        self.assert_answered(control)


class FourLevelTest(SharedMemoryTest):
    """The tests above with four levels of page tables."""

    by_turns = True
    levels = 4
    command_line = "no5lvl"


class TwoProcessorTest(SharedMemoryTest):
    """The tests above with two processors."""

    by_turns = True
    processors = 2


if __name__ == "__main__":
    ProcessTest.main()
