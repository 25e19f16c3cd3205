# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A function works on the memory of a process while the function or the guest is reset, the guest sleeps, or the guest's
driver goes away."""

import re
from typing import Any

from bases.engine import COMPLETED, engine_register
from bases.paging import Call
from bases.process import CHAINS, FUNCTIONS, PAGE, SOURCE, TARGET, Process, ProcessTest
from bases.sharing import own_machine
from lab_kit.vm.control import Control
from lab_kit.vm.guest import GuestError, pattern

FIRST = FUNCTIONS[0]
RESET = f"/sys/bus/pci/devices/0000:{FIRST}/reset"
DRIVER = "/sys/bus/virtio/drivers/virtio_iommu"


class DriverCases(ProcessTest):
    """What the tests have in common."""

    def start_copying(self) -> tuple[Process, Control]:
        """A process with something to copy."""
        process, control = self.start_process()
        process.memory(SOURCE, 4 * PAGE, seed=3)
        process.memory(TARGET, 4 * PAGE, seed=1)
        return process, control

    def assert_copies(self, process: Process) -> None:
        process.fill(TARGET, 4 * PAGE, 1)
        process.copied(SOURCE, TARGET, 4 * PAGE)
        process.verify(TARGET, 4 * PAGE, 3)

    def pasids(self, control: Control) -> list[int]:
        return [entry["pasid"] for entry in control.endpoint(FIRST)["pasids"]]


class DriverTest(DriverCases):
    """If the kernel's IOMMU core and the device disagree about an attachment, the driver keeps track of both."""

    def test_a_process_has_its_function_again_after_a_reset(self):
        process, control = self.start_copying()
        self.assert_copies(process)
        process.run(f"write {RESET} 1")
        self.assertEqual(self.pasids(control), [process.pasid])
        self.assert_copies(process)
        self.assert_answered(control)

    def test_a_reset_finds_nothing_to_attach_where_the_process_is_gone(self):
        """The function is still open, in the program that the process has become."""
        guest, control = self.start_functions()
        process = Process(self, guest).fork("one")
        process.share()
        process.run("exec")
        for _ in range(2):
            self.assertEqual(self.pasids(control), [])
            guest.run(f"write {RESET} 1")
        process.kill()
        fresh = Process(self, guest)
        fresh.share()
        for address in (CHAINS, SOURCE, TARGET):
            fresh.memory(address, 4 * PAGE, seed=3)
        self.assert_copies(fresh)
        self.assert_answered(control)

    def test_a_system_with_a_bound_process_does_not_sleep(self):
        process, control = self.start_copying()
        guest = process.guest
        guest.run("write /sys/power/pm_test devices")
        with self.assertRaisesRegex(GuestError, "busy"):
            guest.run("write /sys/power/state freeze")
        self.assert_copies(process)
        process.run("close one")
        guest.run("write /sys/power/state freeze")
        guest.run("write /sys/power/pm_test none")
        process.share()
        self.assert_copies(process)
        self.assert_answered(control)


class StandStillTest(DriverCases):
    """The queues stand still. The back-end is not told whether that is a pause or the end of the driver."""

    def access(self, process: Process, address: int, **more: Any) -> Call:
        """An access of the first function, with the PASID of the process, from outside: it may wait."""
        control = Control(self.directory / "control.sock", timeout=60)
        self.addCleanup(control.close)
        return Call(lambda: control.execute(endpoint=FIRST, pasid=process.pasid, iova=address, **more))

    def assert_held(self, control: Control, process: Process) -> None:
        way = control.execute("translate", endpoint=FIRST, pasid=process.pasid, iova=SOURCE)
        self.assertEqual((way["kind"], way["held"]), ("table", True))

    def test_a_function_stands_still_with_its_machine_and_goes_on_with_it__x87(self):
        process, control = self.start_copying()
        process.copy_in_circles(SOURCE, TARGET, 4 * PAGE)
        completed = engine_register(0, COMPLETED)
        self.wait_until("copies", lambda: process.register(completed) > 20)
        for _ in range(3):
            self.machine.qmp("stop")
            self.assert_held(control, process)
            read = self.access(process, SOURCE, command="dma-read", length=16)
            self.assert_held(control, process)
            self.assertTrue(read.is_alive())
            self.machine.qmp("cont")
            self.assertEqual(read.result()["data"], pattern(3, 16).hex())
            before = process.register(completed)
            self.wait_until("copies", lambda seen=before: process.register(completed) > seen)
        process.run("engine-reset one 0")
        process.verify(TARGET, 4 * PAGE, 3)
        self.assertEqual(self.pasids(control), [process.pasid])
        self.assert_answered(control)

    @own_machine
    def test_the_tables_of_a_driver_are_left_alone_once_its_machine_was_reset__x87(self):
        process, control = self.start_copying()
        guest = process.guest
        self.assert_copies(process)
        self.machine.qmp("system_reset")
        guest.wait_ready()
        # The next kernel runs, and its memory is where the process had its own.
        self.assertEqual(self.pasids(control), [process.pasid])
        self.assert_held(control, process)
        write = self.access(process, TARGET, command="dma-write", data="ff" * 16)
        self.assert_held(control, process)
        self.assertTrue(write.is_alive())
        guest.load("virtio_iommu")
        self.assert_refused("TranslationFault", write.result)
        self.assertEqual(self.pasids(control), [])
        guest.load("uio_pci_generic_sva")
        guest.run(f"bind {FIRST} uio_pci_sva")
        fresh = Process(self, guest)
        fresh.share()
        for address in (CHAINS, SOURCE, TARGET):
            fresh.memory(address, 4 * PAGE, seed=3)
        self.assert_copies(fresh)
        self.assert_answered(control)


class UnbindTest(DriverCases):
    """The guest unbinds the driver, and binds it again."""

    # The stock uio_pci_sva gives no interrupt back when it is unbound (Linux 7.3).
    known_trouble = re.compile(r"WARNING: kernel/irq/(?:irqdomain|msi)\.c.*?---\[ end trace", re.DOTALL)

    @own_machine
    def test_the_driver_goes_when_its_last_process_has_gone(self):
        process, control = self.start_copying()
        guest = process.guest
        self.assert_copies(process)
        process.run("close one")
        for function in FUNCTIONS:
            guest.run(f"unbind {function}")
        device = next(name for name in guest.lines(f"ls {DRIVER}") if name.startswith("virtio"))
        guest.run(f"write {DRIVER}/unbind {device}")
        guest.run("rmmod virtio_iommu")
        guest.load("virtio_iommu")
        self.assertEqual(self.pasids(control), [])
        self.assert_clean(control)


if __name__ == "__main__":
    ProcessTest.main()
