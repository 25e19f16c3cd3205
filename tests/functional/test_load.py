# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Many mappings: the kernel's dma_map_benchmark on an endpoint."""

import os

from bases.testcase import FunctionalTest
from lab_kit.vm.machine import ENDPOINTS

FIRST = ENDPOINTS[0]

# How many mappings the longest test makes, and the others. In a run of everything all make as many as the longest.
MOST, MANY = 100_000, 20_000
EVERYTHING = bool(os.environ.get("LAB_EXHAUSTIVE"))


class LoadTest(FunctionalTest):
    """A hundred thousand mappings; several threads, and the flush queue."""

    most = MOST

    def map_many(self, command_line: str, threads: int, pages: int, mappings: int):
        _, guest, control = self.start(command_line=command_line)
        guest.run(f"bind {FIRST} dma_map_benchmark")
        before = control.counters()
        wanted = MOST if EVERYTHING else mappings
        while control.counters()["map"] - before["map"] < wanted:
            result = guest.benchmark(seconds=1, threads=threads, pages=pages)
            self.assertGreater(result["map_100ns"], 0)
        self.assert_clean(control)
        return control, before

    def test_every_mapping_is_removed_when_unmaps_are_strict(self):
        control, before = self.map_many("iommu.strict=1", threads=1, pages=1, mappings=self.most)
        after = control.counters()
        self.assertEqual(after["map"] - before["map"], after["unmap"] - before["unmap"])
        self.assertEqual(control.domain(FIRST)["mappings"], 0)

    def test_nothing_fails_when_unmaps_are_lazy(self):
        self.map_many("iommu.strict=0", threads=1, pages=1, mappings=MANY)

    def test_every_mapping_of_16_pages_by_two_threads_is_removed(self):
        control, _ = self.map_many("iommu.strict=1", threads=2, pages=16, mappings=MANY)
        self.assertEqual(control.domain(FIRST)["mappings"], 0)


if __name__ == "__main__":
    FunctionalTest.main()
