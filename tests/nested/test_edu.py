# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""DMA of passed-through `edu` functions: where it lands, and where this machine's IOMMU stops it."""

import os
import signal
from collections.abc import Callable

from edu import Edu
from harness.guest import Guest, pattern
from kernel_log import Fault, KernelLog
from passthrough import EDU, PassthroughTest, bind, functions

ONE, TWO = "00:05.0", "00:06.0"
FROM, TO, READ_ONLY, NOWHERE = 0x200_0000, 0x300_0000, 0x400_0000, 0x500_0000
PAGE = 0x1000


def memory(guest: Guest, space: str, iova: int, length: int = PAGE) -> bytes:
    """The guest's buffer as its processor sees it."""
    return b"".join(guest.peek(space, at, 1024) for at in range(iova, iova + length, 1024))


class EduTest(PassthroughTest):
    def setUp(self) -> None:
        super().setUp()
        self.log = KernelLog()
        self.addCleanup(self.log.close)
        self.provoked: set[Fault] = set()

    def refused(self, function: str, access: str, copy: Callable[[int], None], iova: int) -> None:
        """A copy that this machine's IOMMU is to refuse."""
        self.provoked.add(Fault(function, access, iova))
        copy(iova)

    def assert_no_other_faults(self) -> None:
        """Asserts that the IOMMU has refused only what was provoked. The emulated one has a single fault record, and
        loses faults that come while that is read: where data went is the proof."""
        self.assertLessEqual(set(self.log.faults()), self.provoked)

    def test_dma_goes_where_the_guest_mapped_it_and_nowhere_else(self):
        function = functions(EDU)[0]
        machine = self.start_passthrough(f"{function}={ONE}")
        guest, control = machine.guest, self.connect_to(machine)
        guest.load("virtio_iommu")
        self.attach_vfio(guest, "edu", ONE, "space")
        edu = Edu(guest, "edu")
        guest.map("space", FROM, PAGE, "rw", 1)
        guest.map("space", TO, 3 * PAGE, "rw", 2)
        guest.map("space", READ_ONLY, PAGE, "r", 3)

        # To the page in the middle.
        edu.read(FROM)
        edu.write(TO + PAGE)
        around = pattern(2, 3 * PAGE)
        self.assertEqual(memory(guest, "space", TO, 3 * PAGE), around[:PAGE] + pattern(1, PAGE) + around[2 * PAGE :])
        self.assert_no_other_faults()

        # Not to read-only memory, and from it.
        self.refused(function, "write", edu.write, READ_ONLY)
        self.assertEqual(memory(guest, "space", READ_ONLY), pattern(3, PAGE))
        edu.read(READ_ONLY)
        edu.write(TO)
        self.assertEqual(memory(guest, "space", TO), pattern(3, PAGE))

        # Neither from nor to where nothing is mapped any more, or never was.
        guest.unmap("space", FROM, PAGE)
        for iova in (FROM, NOWHERE):
            self.refused(function, "write", edu.write, iova)
            self.refused(function, "read", edu.read, iova)
        edu.write(TO)
        self.assertNotEqual(memory(guest, "space", TO), pattern(1, PAGE))

        # A device that is attached to nothing reaches nothing.
        edu.read(READ_ONLY)
        guest.run("detach edu")
        self.refused(function, "write", edu.write, TO + 2 * PAGE)
        self.assertEqual(memory(guest, "space", TO + 2 * PAGE), around[2 * PAGE :])

        # What it was attached to is as it was.
        guest.run("attach edu space")
        edu.read(READ_ONLY)
        edu.write(TO + 2 * PAGE)
        self.assertEqual(memory(guest, "space", TO + 2 * PAGE), pattern(3, PAGE))
        self.assert_no_other_faults()
        self.assert_clean(control)

        # The guest cannot go on without its IOMMU.
        os.kill(machine.backend_pid(), signal.SIGKILL)
        self.assertEqual(machine.wait(), 1)
        self.assert_free(function)
        self.assert_no_other_faults()

    def test_two_devices_are_in_two_domains_and_in_one(self):
        first, *_, second = functions(EDU)
        machine = self.start_passthrough(f"{first}={ONE}", f"{second}={TWO}")
        guest, control = machine.guest, self.connect_to(machine)
        guest.load("virtio_iommu")
        self.attach_vfio(guest, "one", ONE, "first")
        self.attach_vfio(guest, "two", TWO, "second")
        one, two = Edu(guest, "one"), Edu(guest, "two")
        guest.map("first", FROM, PAGE, "rw", 1)
        guest.map("second", FROM, PAGE, "rw", 2)
        guest.map("first", TO, PAGE, "rw", 3)

        # The same address means another page for each.
        one.read(FROM)
        two.read(FROM)
        one.write(TO)
        self.assertEqual(memory(guest, "first", TO), pattern(1, PAGE))
        self.assert_no_other_faults()
        self.refused(second, "write", two.write, TO)
        self.assertEqual(memory(guest, "first", TO), pattern(1, PAGE))

        # One address space for both: what one writes the other reads.
        guest.run("attach two first")
        self.assertEqual(control.endpoint(ONE)["domain"], control.endpoint(TWO)["domain"])
        two.write(TO)
        self.assertEqual(memory(guest, "first", TO), pattern(2, PAGE))
        one.read(TO)
        guest.map("first", NOWHERE, PAGE, "rw", 4)
        one.write(NOWHERE)
        self.assertEqual(memory(guest, "first", NOWHERE), pattern(2, PAGE))
        guest.unmap("first", TO, PAGE)
        for edu, function in ((one, first), (two, second)):
            self.refused(function, "write", edu.write, TO)
        self.assert_no_other_faults()
        self.assert_clean(control)

        # In good order: SIGTERM to the launcher ends all three.
        machine.process.terminate()
        machine.wait()
        self.assert_free(first)
        self.assert_free(second)

    def test_device_is_served_while_nobody_has_another_of_its_group(self):
        _, one, two, _ = functions(EDU)
        bind(two)
        machine = self.start_passthrough(f"{one}={ONE}")
        guest, control = machine.guest, self.connect_to(machine)
        guest.load("virtio_iommu")
        self.attach_vfio(guest, "edu", ONE, "space")
        # Its DMA the emulated IOMMU refuses: it takes the bridge's for that of a function without a context.
        guest.map("space", FROM, PAGE, "r", 1)
        self.assertEqual(control.endpoint(ONE)["state"], "attached")
        self.assertEqual(control.domain(ONE)["mappings"], 1)
        self.assertRegex(machine.log.read_text(), f"{two} is in its IOMMU group [0-9]+ too: give that to nobody")
        self.assert_no_other_faults()
        self.assert_clean(control)

    def test_devices_that_share_a_group_are_refused(self):
        # Behind a bridge to conventional PCI: the IOMMU takes their accesses for the bridge's.
        _, one, two, _ = functions(EDU)
        with self.assertRaises(EOFError):
            self.start_passthrough(f"{one}={ONE}", f"{two}={TWO}")
        (log,) = self.directory.glob("qemu.log")
        # QEMU has both: whichever comes first would take the other along.
        self.assertRegex(log.read_text(), f"endpoint 0x28 is in IOMMU group [0-9]+, as {two}, which is in this iommufd")
