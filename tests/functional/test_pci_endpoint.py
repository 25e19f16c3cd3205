# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Software functions in a stock Linux guest: the stock driver pci_endpoint_test, and the kernel's own test of it.

All their DMA goes through the back-end's IOMMU. Debian's packaged kernel lacks the driver; the lab kernel has it.
"""

import re

from bases.sharing import own_machine
from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.backend import Backend
from lab_kit.vm.guest import Guest, GuestError
from lab_kit.vm.machine import ENDPOINTS, Machine

FUNCTIONS = ("00:07.0", "00:08.0", "00:09.0", "00:0a.0")
FIRST = FUNCTIONS[0]

LENGTHS = (1, 2, 4095, 4096, 4097, 65535, 1048576)
VECTORS = 32

# Registers of BAR 0.
COMMAND, STATUS, SOURCE, DESTINATION, SIZE, IRQ_TYPE = 0x04, 0x08, 0x0C, 0x14, 0x1C, 0x24
# COMMAND: what the function does; the driver's names are the other way round.
READ, WRITE = 1 << 3, 1 << 4
# STATUS.
READ_SUCCESS, READ_FAIL, IRQ_RAISED, SRC_ADDR_INVALID = 1 << 0, 1 << 1, 1 << 6, 1 << 7

# What the kernel's test does not run, and why: of its vectors, as many are tested as the function and the machine have.
NOT_RUN = {
    "pci_ep_bar.BAR0.BAR_SUBRANGE_TEST": "BAR is test register space",
    "pci_ep_bar.BAR2.BAR_TEST": "BAR is reserved",
    "pci_ep_bar.BAR2.BAR_SUBRANGE_TEST": "BAR is reserved",
    **{f"pci_ep_bar.BAR{bar}.{test}": "BAR is disabled" for bar in (3, 4, 5) for test in ("BAR_TEST", "BAR_SUBRANGE_TEST")},
    "pci_ep_basic.MSIX_TEST": f"MSI-X{VECTORS + 1} is disabled",
}


class FunctionTest(FunctionalTest):
    """Starts functions under their driver, and drives them."""

    # Messages of MSI that the machine has for a function: one on x86, without interrupt remapping.
    messages = 1
    # The kernel's own test.
    selftest = staticmethod(lab.pci_selftest)

    def start_functions(
        self, *functions: str, command_line: str = "", extra: tuple[str, ...] = ()
    ) -> tuple[Machine, Backend]:
        """A guest with functions at these places, and their driver loaded."""

        def make() -> tuple[Backend, Machine]:
            sockets = {function: self.directory / f"function{number}.sock" for number, function in enumerate(functions)}
            endpoints = [f"{function},soft={path}" for function, path in sockets.items()]
            backend = self.start_backend(endpoints=(*ENDPOINTS, *endpoints))
            machine = self.start_machine(
                backend, command_line, functions=sockets, programs=(self.selftest(),), extra=extra
            )
            machine.guest.load("virtio_iommu", self.driver_parameters)
            machine.guest.load("pci_endpoint_test")
            return backend, machine

        backend, machine = self.shared((functions, command_line, extra), make)
        return machine, backend

    def restore(self, machine: Machine) -> None:
        """The functions lose what they have counted, and what their driver has set up."""
        for function in machine.config.functions:
            machine.guest.run(f"unbind {function}")
            machine.guest.run(f"write /sys/bus/pci/devices/0000:{function}/reset 1")
            machine.guest.run(f"bind {function} pci-endpoint-test")

    def not_run(self) -> dict[str, str]:
        if self.messages == VECTORS:
            return NOT_RUN
        return {**NOT_RUN, "pci_ep_basic.MSI_TEST": f"MSI{self.messages + 1} is disabled"}

    def check_selftest(self, guest: Guest) -> None:
        """Runs the kernel's test, and asserts that all of it has run but what cannot."""
        status, lines = guest.ask("run /pci_endpoint_test", timeout=300)
        text = "\n".join(lines)
        passed = set(re.findall(r"^ok \d+ (\S+)$", text, re.M))
        skipped = dict(re.findall(r"^ok \d+ (\S+) # SKIP (.*)$", text, re.M))
        self.assertEqual(status, "0", text)
        self.assertEqual(skipped, self.not_run(), text)
        for kind in ("memcpy", "dma"):
            for test in ("READ_TEST", "WRITE_TEST", "COPY_TEST"):
                self.assertIn(f"pci_ep_data_transfer.{kind}.{test}", passed, text)
        self.assertIn("pci_ep_basic.LEGACY_IRQ_TEST", passed, text)
        self.assertIn("pci_ep_bar.BAR1.BAR_SUBRANGE_TEST", passed, text)
        self.assertIn("pcie_ep_doorbell.DOORBELL_TEST", passed, text)

    def check_transfers(self, guest: Guest) -> None:
        guest.run("test-interrupts 0 msix")
        for length in LENGTHS:
            for kind in ("read", "write", "copy"):
                guest.run(f"test-transfer 0 {kind} {length}")


class PciEndpointTest(FunctionTest):
    """Transfers, interrupts, and the limits of the IOMMU's mappings."""

    shares_machines = True

    def check_mode(self, kind: str, command_line: str) -> None:
        machine, backend = self.start_functions(FIRST, command_line=command_line)
        self.assertEqual(machine.guest.group_types()[FIRST], kind)
        self.check_selftest(machine.guest)
        self.check_transfers(machine.guest)
        seen = backend.control.execute("endpoint", endpoint=FIRST)
        self.assertGreater(seen["bars"]["0"]["bytes-read"], sum(LENGTHS))
        self.assert_clean(backend.control)

    def test_the_kernels_own_test_passes_in_strict_mode(self):
        self.check_mode("DMA", "iommu.strict=1")

    @own_machine
    def test_the_kernels_own_test_passes_in_lazy_mode(self):
        self.check_mode("DMA-FQ", "iommu.strict=0")

    @own_machine
    def test_the_kernels_own_test_passes_in_identity_domains(self):
        self.check_mode("identity", "iommu.passthrough=1")

    def test_every_interrupt_vector_arrives_by_its_number(self):
        machine, _ = self.start_functions(FIRST, command_line="iommu.strict=1")
        guest = machine.guest
        guest.run("test-interrupts 0 intx")
        for _ in range(10):
            guest.run("test-interrupt 0 intx 0")
        guest.run("test-interrupts 0 msi")
        for vector in range(1, self.messages + 1):
            guest.run(f"test-interrupt 0 msi {vector}")
        guest.run("test-interrupts 0 msix")
        for vector in range(1, VECTORS + 1):
            guest.run(f"test-interrupt 0 msix {vector}")
        with self.assertRaises(GuestError):
            guest.run(f"test-interrupt 0 msix {VECTORS + 1}")

    @own_machine
    def test_the_kernels_own_test_passes_behind_a_root_port(self):
        port = ("-device", "pcie-root-port,id=bus1,chassis=1,addr=0c.0")
        machine, backend = self.start_functions("01:00.0", command_line="iommu.strict=1", extra=port)
        self.check_selftest(machine.guest)
        self.assert_clean(backend.control)

    @own_machine
    def test_four_functions_at_once(self):
        machine, backend = self.start_functions(*FUNCTIONS)
        guest = machine.guest
        for number in range(len(FUNCTIONS)):
            guest.run(f"test-interrupts {number} msix")
        guest.run(f"test-together {len(FUNCTIONS)} 3 {' '.join(map(str, LENGTHS))}", timeout=300)
        for function in FUNCTIONS:
            seen = backend.control.execute("endpoint", endpoint=function)
            self.assertEqual(seen["bars"]["0"]["failures"], 0)
            self.assertEqual(seen["bars"]["0"]["commands"], 3 * 3 * len(LENGTHS))
        self.assert_clean(backend.control)

    def test_a_transfer_whose_mapping_is_gone_fails_and_the_guests_log_names_the_fault(self):
        machine, backend = self.start_functions(FIRST, command_line="iommu.strict=1")
        guest = machine.guest
        guest.run("test-interrupts 0 msix")
        guest.run("test-transfer 0 write 4096")
        self.assertEqual(int(guest.run(f"bar {FIRST} 0 {STATUS:#x}"), 16), READ_SUCCESS | IRQ_RAISED)
        address = int(guest.run(f"bar {FIRST} 0 {SOURCE:#x}"), 16)
        # The driver has unmapped its buffer; the function still knows the address.
        guest.mark_log()
        guest.run(f"bar {FIRST} 0 {COMMAND:#x} {READ}")
        line = guest.wait_log("fault from EP")
        self.assertIn(f"fault from EP {7 << 3} at {address:#x}", line)
        self.wait_until(
            "the end of the transfer",
            lambda: int(guest.run(f"bar {FIRST} 0 {STATUS:#x}"), 16) == READ_FAIL | SRC_ADDR_INVALID | IRQ_RAISED,
        )
        # It is none the worse for it.
        self.check_transfers(guest)
        self.assert_clean(backend.control)

    def test_qemu_is_killed_and_started_again(self):
        sockets = {FIRST: self.directory / "function.sock"}
        backend = self.start_backend(endpoints=(*ENDPOINTS, f"{FIRST},soft={sockets[FIRST]}"))
        for _ in range(2):
            machine = self.start_machine(backend, functions=sockets)
            machine.guest.load("virtio_iommu")
            machine.guest.load("pci_endpoint_test")
            self.check_transfers(machine.guest)
            machine.kill()
            self.wait_until(
                "the end of the connection",
                lambda: not backend.control.execute("endpoint", endpoint=FIRST)["connected"],
            )
        self.assertEqual(backend.stop(), 0)
        self.assertFalse(sockets[FIRST].exists())

    @own_machine
    def test_a_warm_reboot_resets_the_function(self):
        machine, backend = self.start_functions(FIRST)
        self.check_transfers(machine.guest)
        before = backend.control.execute("endpoint", endpoint=FIRST)["resets"]
        machine.guest.reboot()
        seen = backend.control.execute("endpoint", endpoint=FIRST)
        self.assertGreater(seen["resets"], before)
        self.assertEqual(seen["bars"]["0"]["commands"], 0)
        machine.guest.load("virtio_iommu")
        machine.guest.load("pci_endpoint_test")
        self.check_transfers(machine.guest)


class InterruptRemappingTest(FunctionTest):
    """QEMU's Intel IOMMU is there too and remaps interrupts only. With it a function gets all its MSI vectors on x86."""

    messages = VECTORS
    remapping = ("-device", "intel-iommu,intremap=on,dma-translation=off")

    def test_every_msi_vector_arrives_and_dma_is_ours(self):
        machine, backend = self.start_functions(FIRST, command_line="iommu.strict=1", extra=self.remapping)
        guest = machine.guest
        guest.run("test-interrupts 0 msi")
        for vector in range(1, VECTORS + 1):
            guest.run(f"test-interrupt 0 msi {vector}")
        self.check_selftest(guest)
        self.assertEqual(set(guest.group_types()), {*ENDPOINTS, FIRST})
        self.assertGreater(backend.control.counters()["map"], 0)
        self.assert_clean(backend.control)


class PatchedDriverTest(FunctionTest):
    """pci_endpoint_test with the IOMMU driver of guest/linux/."""

    kernel = staticmethod(lab.patched_kernel)

    def test_reboot_during_transfers(self):
        # The function's driver does nothing at a shutdown, so mappings of its last buffers are still there when the IOMMU
        # is reset: patch 0021 of guest/linux.
        machine, backend = self.start_functions(FIRST, command_line="iommu.strict=0")
        guest = machine.guest
        for _ in range(3):
            guest.run("test-interrupts 0 msix")
            guest.run("background test-together 1 1000000 4096")
            self.wait_until(
                "transfers", lambda: backend.control.execute("endpoint", endpoint=FIRST)["bars"]["0"]["commands"] > 10
            )
            guest.run("reboot")
            guest.wait_ready()
            guest.load("virtio_iommu")
            guest.load("pci_endpoint_test")
        self.check_transfers(guest)


if __name__ == "__main__":
    FunctionalTest.main()
