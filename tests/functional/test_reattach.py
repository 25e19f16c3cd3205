# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What serves the front-end's connection is replaced under a guest, again and again. Neither QEMU nor the guest may notice."""

import os
import threading
from collections.abc import Callable
from typing import Any

from bases.paging import Call, PagingTest
from bases.testcase import FunctionalTest
from lab_kit.vm.control import Control
from lab_kit.vm.guest import pattern
from lab_kit.vm.machine import ENDPOINTS, Machine

FIRST = ENDPOINTS[0]
IOVA = 0x100_0000
PAGE = 0x1000
LENGTH = 256 << 20

EVERYTHING = bool(os.environ.get("LAB_EXHAUSTIVE"))
# How often while the guest maps without a pause, and otherwise.
MOST, MANY, REBOOTS = (1000, 200, 5) if EVERYTHING else (60, 20, 2)


class Reattacher(threading.Thread):
    """Reattaches so often, or until it is told to stop; `between` waits for what is to come between two times."""

    def __init__(self, control: Control, times: int | None = None, between: Callable[[], object] = lambda: None):
        super().__init__(daemon=True)
        self._control, self._times, self._between = control, times, between
        self._stopped = threading.Event()
        self._error: Exception | None = None
        self.answers: list[dict[str, int]] = []
        self.start()

    def run(self) -> None:
        try:
            while not self._stopped.is_set() and len(self.answers) != self._times:
                self.answers.append(self._control.execute("reattach"))
                self._between()
        except Exception as error:  # noqa: BLE001: for the test's own thread
            self._error = error

    def finish(self) -> list[dict[str, int]]:
        """What was answered."""
        self._stopped.set()
        self.join(60)
        if self._error:
            raise self._error
        assert not self.is_alive()
        return self.answers


class ReattachTest(PagingTest):
    """A guest with the patched driver, which reads the status of each request."""

    def assert_unnoticed(self, machine: Machine, control: Control, answers: list[dict[str, int]]) -> None:
        """QEMU has sent no message, and said nothing: its log has the command line, and that is all."""
        self.assertEqual({answer["messages"] for answer in answers}, {answers[0]["messages"]})
        self.assertEqual(len(machine.log.read_text().splitlines()), 1, machine.log.read_text())
        counters = control.counters()
        self.assertEqual(counters["reattachments"], len(answers))
        self.assertEqual((counters["connections"], counters["rings_broken"]), (1, 0))
        self.assert_clean(control)

    def run_load(self, command_line: str, threads: int) -> Control:
        machine, guest, control = self.start(command_line=command_line)
        guest.run(f"bind {FIRST} dma_map_benchmark")
        # It begins before the benchmark, whose first mappings it waits for.
        ours = self.connect()

        def load_goes_on() -> None:
            before = ours.counters()["map"]
            self.wait_until("more mappings", lambda: ours.counters()["map"] >= before + 20)

        reattacher = Reattacher(self.connect(), MOST, load_goes_on)
        resets = control.counters()["resets"]
        while reattacher.is_alive():
            result = guest.benchmark(seconds=1, threads=threads, pages=1)
            self.assertGreater(result["map_100ns"], 0)
        answers = reattacher.finish()
        self.assertEqual(len(answers), MOST)
        self.assertEqual(control.counters()["resets"], resets)
        self.assert_unnoticed(machine, control, answers)
        return control

    def test_a_driver_that_maps_and_unmaps_notices_nothing(self):
        control = self.run_load("iommu.strict=1", threads=1)
        self.assertEqual(control.domain(FIRST)["mappings"], 0)

    def test_nor_do_two_threads_with_a_flush_queue(self):
        self.run_load("iommu.strict=0", threads=2)

    def test_each_mapping_is_as_it_was(self):
        machine, guest, control = self.start()
        self.attach_vfio(guest, "dev", FIRST, "space")
        reattacher = Reattacher(self.connect())
        for number in range(MANY):
            guest.map("space", IOVA + number * PAGE, PAGE, "rw", number)
            if number % 3 == 2:
                guest.unmap("space", IOVA + (number - 1) * PAGE, PAGE)
                self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA + (number - 1) * PAGE, 16)
            for live in (live for live in range(number + 1) if live % 3 != 1 or live > number - 1):
                self.assertEqual(control.dma_read(FIRST, IOVA + live * PAGE, 16), pattern(live, 16))
        self.assert_unnoticed(machine, control, reattacher.finish())

    def test_page_requests_wait_for_their_answers(self):
        machine, guest, control = self.start_attached()
        reattacher = Reattacher(self.connect())
        readers = [self.connect() for _ in range(4)]
        for number in range(MANY):
            first = IOVA + 4 * number * PAGE

            def read(index: int, first: int = first) -> bytes:
                return readers[index].dma_read(FIRST, first + index * PAGE, 16)

            reads = [Call(lambda index=index: read(index)) for index in range(4)]
            faults: list[dict[str, str]] = []
            while len(faults) < 4:
                faults += self.faults(guest, "one")
            for fault in faults:
                address = int(fault["address"], 16)
                guest.map("one", address, PAGE, "r", address // PAGE)
                guest.run(f"answer one {fault['cookie']} success")
            for index, call in enumerate(reads):
                self.assertEqual(call.result(), pattern(first // PAGE + index, 16))
        answers = reattacher.finish()
        self.assert_answered(control, 4 * MANY)
        self.assert_unnoticed(machine, control, answers)

    def test_the_machine_pauses_and_memory_comes_and_goes_meanwhile(self):
        machine, guest, control = self.start(extra=("-m", "512M,slots=1,maxmem=2G"))
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, PAGE, "rw", 1)
        resets, before = control.counters()["resets"], len(control.status()["memory"])
        reattacher = Reattacher(self.connect())
        for _ in range(MANY // 4):
            machine.qmp("stop")
            self.assertEqual(control.dma_read(FIRST, IOVA, 16), pattern(1, 16))
            machine.qmp("cont")
            guest.map("space", IOVA + PAGE, PAGE, "rw", 2)
            self.assertEqual(control.dma_read(FIRST, IOVA + PAGE, 16), pattern(2, 16))
            guest.unmap("space", IOVA + PAGE, PAGE)
            machine.plug_memory(LENGTH)
            self.wait_until("the memory", lambda: len(control.status()["memory"]) == before + 1)
            machine.unplug_memory()
            self.wait_until("its end", lambda: len(control.status()["memory"]) == before)
        answers = reattacher.finish()
        self.assertEqual(control.counters()["resets"], resets)
        self.assertEqual(control.dma_read(FIRST, IOVA, 16), pattern(1, 16))
        # QEMU has sent messages, and each has had its answer.
        self.assertGreater(answers[-1]["messages"], answers[0]["messages"])
        self.assert_unnoticed(machine, control, [answer | {"messages": 0} for answer in answers])

    def test_the_guest_starts_anew_meanwhile(self):
        machine, guest, control = self.start()
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, PAGE, "rw", 1)
        reattacher = Reattacher(self.connect())
        for seed in range(2, 2 + REBOOTS):
            guest.reboot()
            guest.load("virtio_iommu")
            self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
            self.attach_vfio(guest, "dev", FIRST, "space")
            guest.map("space", IOVA, PAGE, "rw", seed)
            self.assertEqual(control.dma_read(FIRST, IOVA, 16), pattern(seed, 16))
        answers: list[dict[str, Any]] = reattacher.finish()
        self.assert_unnoticed(machine, control, [answer | {"messages": 0} for answer in answers])


if __name__ == "__main__":
    FunctionalTest.main()
