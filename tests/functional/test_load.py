# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Many mappings: the kernel's dma_map_benchmark on an endpoint."""

from bases.testcase import FunctionalTest
from lab_kit.vm.machine import ENDPOINTS

FIRST = ENDPOINTS[0]
MAPPINGS = 100_000


class LoadTest(FunctionalTest):
    """A hundred thousand mappings, several threads, and the flush queue."""

    def map_many(self, command_line: str, threads: int, pages: int):
        _, guest, control = self.start(command_line=command_line)
        guest.run(f"bind {FIRST} dma_map_benchmark")
        before = control.counters()
        while control.counters()["map"] - before["map"] < MAPPINGS:
            result = guest.benchmark(seconds=1, threads=threads, pages=pages)
            self.assertGreater(result["map_100ns"], 0)
        self.assert_clean(control)
        return control, before

    def test_100_000_mappings_strict(self):
        control, before = self.map_many("iommu.strict=1", threads=1, pages=1)
        after = control.counters()
        self.assertEqual(after["map"] - before["map"], after["unmap"] - before["unmap"])
        self.assertEqual(control.domain(FIRST)["mappings"], 0)

    def test_100_000_mappings_lazy(self):
        self.map_many("iommu.strict=0", threads=1, pages=1)

    def test_100_000_mappings_of_16_pages_by_two_threads(self):
        control, _ = self.map_many("iommu.strict=1", threads=2, pages=16)
        self.assertEqual(control.domain(FIRST)["mappings"], 0)


if __name__ == "__main__":
    FunctionalTest.main()
