# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What tests of DMA have in common: accesses that this machine's IOMMU refuses, and its log of them."""

from collections.abc import Callable

from edu import BareEdu
from kernel_log import Fault, KernelLog
from memory import GuestMemory
from passthrough import PassthroughMachine, PassthroughTest

from lab_kit.vm.guest import TIMEOUT, Guest, pattern

PAGE = 0x1000

# The names of two buffers that nothing translates.
FROM, TO = 0x1000, 0x2000


def memory(guest: Guest, space: str, iova: int, length: int = PAGE) -> bytes:
    """The guest's buffer as its processor sees it."""
    return b"".join(guest.peek(space, at, 1024) for at in range(iova, iova + length, 1024))


class DmaTest(PassthroughTest):
    """Knows which faults it has provoked."""

    def setUp(self) -> None:
        super().setUp()
        self.log = KernelLog()
        self.addCleanup(self.log.close)
        self.provoked: set[Fault] = set()
        self._found: set[Fault] = set()
        self._seed = 100

    def faults(self) -> set[Fault]:
        """What the IOMMU has refused, as far as the log has it."""
        self._found.update(self.log.faults())
        return self._found

    def refused(self, function: str, access: str, copy: Callable[[int], None], iova: int) -> None:
        """A copy that this machine's IOMMU is to refuse."""
        self.provoked.add(Fault(function, access, iova))
        copy(iova)

    def refused_and_told(self, function: str, access: str, copy: Callable[[int], None], iova: int) -> None:
        """The same, until the log tells of it: for a device of which nothing else shows that it has tried."""

        def is_told() -> bool:
            self.refused(function, access, copy, iova)
            return Fault(function, access, iova) in self.faults()

        self.wait_until(f"a fault at {iova:#x}", is_told, TIMEOUT)

    def assert_bypass(self, machine: PassthroughMachine, function: str) -> None:
        """Asserts that an `edu` reaches guest memory at its own addresses, as a boot loader's device has to."""
        guest = machine.guest
        guest.run("ioas bypass")
        # Patterns that no other page has, not even one from before a reboot.
        seeds = self._seed, self._seed + 1
        self._seed += len(seeds)
        for iova, seed in zip((FROM, TO), seeds, strict=True):
            guest.run(f"buffer bypass {iova:#x} {PAGE:#x} {seed}")
        held, bare = GuestMemory(machine.qemu_pid()), BareEdu(function)
        source, destination = (held.physical(pattern(seed, PAGE)) for seed in seeds)
        bare.read(source)
        bare.write(destination)
        self.assertEqual(memory(guest, "bypass", TO), pattern(seeds[0], PAGE))
        held.close()
        bare.close()
        guest.run("ioas-free bypass")

    def assert_no_other_faults(self) -> None:
        """Asserts that the IOMMU has refused only what was provoked. The emulated one has a single fault record, and
        loses faults that come while that is read: where data went is the proof."""
        self.assertLessEqual(self.faults(), self.provoked)
