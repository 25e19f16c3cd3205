# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A function works on the memory of a process while the function or the guest is reset, the guest sleeps, or the guest's
driver goes away."""

import re

from bases.process import CHAINS, FUNCTIONS, PAGE, SOURCE, TARGET, Process, ProcessTest
from bases.sharing import own_machine
from lab_kit.vm.control import Control
from lab_kit.vm.guest import GuestError

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
