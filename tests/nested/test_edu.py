# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""DMA of passed-through `edu` functions: where it lands, and where this machine's IOMMU stops it."""

import signal

from dma import PAGE, DmaTest, memory
from edu import BareEdu, Edu
from memory import GuestMemory
from passthrough import EDU, PassthroughMachine, bind, end_process, functions

from lab_kit.vm.guest import TIMEOUT, pattern

ONE, TWO = "00:05.0", "00:06.0"
FROM, TO, READ_ONLY, NOWHERE, LAST = 0x200_0000, 0x300_0000, 0x400_0000, 0x500_0000, 0x600_0000


class EduTest(DmaTest):
    def watch(self, machine: PassthroughMachine, contents: bytes) -> memoryview:
        """The page of the guest's memory that has these contents. It outlives the guest."""
        held = GuestMemory(machine.qemu_pid())
        self.addCleanup(held.close)
        return held.page(contents)

    def test_dma_goes_where_the_guest_mapped_it_and_nowhere_else(self):
        function = functions(EDU)[0]
        machine = self.start_passthrough(f"{function}={ONE}", options=("--backend-options", "--kernel-log /dev/kmsg"))
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

        # The guest's own driver hears of it, which this machine's kernel has told in its log alone.
        self.refused_and_told(function, "write", edu.write, NOWHERE)
        report = f"page fault from EP {0x28} at {NOWHERE:#x} [W]"
        self.wait_until("a report in the guest", lambda: report in machine.kernel_log, TIMEOUT)

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

        # The back-end is killed. The guest is there, and so is what it has mapped, and nothing else.
        guest.map("space", LAST, PAGE, "rw", 4)
        edu.read(READ_ONLY)
        page, bare = self.watch(machine, pattern(4, PAGE)), BareEdu(function)
        self.addCleanup(bare.close)
        machine.hold_launcher()
        end_process(machine.backend_pid(), signal.SIGKILL)
        bare.write(LAST)
        self.assertEqual(bytes(page), pattern(3, PAGE))
        self.refused_and_told(function, "write", bare.write, NOWHERE)

        # Then QEMU. From here on the device reaches nothing of what the guest had.
        page[:] = bytes(PAGE)
        end_process(machine.qemu_pid(), signal.SIGKILL)
        self.refused_and_told(function, "write", bare.write, LAST)
        self.assertEqual(bytes(page), bytes(PAGE))

        machine.release_launcher()
        machine.wait()
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

        # The back-end is ended in good order, beside a guest that goes on: the devices are blocked.
        guest.map("first", LAST, PAGE, "rw", 5)
        page = self.watch(machine, pattern(5, PAGE))
        machine.hold_launcher()
        end_process(machine.backend_pid(), signal.SIGTERM)
        guest.run("clock")
        for function in (first, second):
            bare = BareEdu(function)
            self.addCleanup(bare.close)
            self.refused_and_told(function, "write", bare.write, LAST)
        self.assertEqual(bytes(page), pattern(5, PAGE))

        # The guest cannot go on without its IOMMU.
        machine.release_launcher()
        self.assertEqual(machine.wait(), 1)
        self.assertIn("the back-end has ended with status 0", machine.log.read_text())
        for function in (first, second):
            self.assert_free(function)
        self.assert_no_other_faults()

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
        self.assertRegex(machine.log.read_text(), f"{two} is in its IOMMU group [0-9]+ too: give it to no other process")
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
