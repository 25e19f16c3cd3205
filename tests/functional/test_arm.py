# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Linux guests on Arm, with a device tree and an ITS, pass the tests of x86.

On Arm the IOMMU translates an interrupt message like any write, unless a reserved region of type MSI covers its address.
"""

import pathlib
import re
import struct
from typing import Any

import test_dma
import test_fault_engine
import test_page_requests
import test_pasids
import test_pci_endpoint
import test_probe
import test_sva
import test_sva_ends
from test_pci_endpoint import FIRST, VECTORS

from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.arm import MSI_WINDOW, ArmMachine, MmioMachine, mmio_overlay, overlay
from lab_kit.vm.backend import Backend
from lab_kit.vm.guest import GuestError
from lab_kit.vm.machine import ENDPOINTS
from lab_kit.vm.requests import HEAD, MAP, MAP_FIELDS, MMIO, logged

# Where memory begins; below are registers.
MEMORY = 0x4000_0000

MANUAL = pathlib.Path(__file__).resolve().parents[2] / "docs" / "arm.md"


class Arm(FunctionalTest):
    """What the classes have in common."""

    kernel = staticmethod(lab.arm_kernel)
    machine_type = ArmMachine
    processors = 2
    # Where messages pass; None to say nothing of them.
    window: tuple[int, int] | None = MSI_WINDOW
    messages = VECTORS
    selftest = staticmethod(lab.arm_pci_selftest)

    def start_backend(self, *options: str, **more: Any) -> Backend:
        if self.window:
            first, last = self.window
            options += ("--reserved-region", f"{first:x}:{last:x}:1")
        return super().start_backend(*options, **more)


class DeviceTreeTest(Arm):
    """The device tree names the IOMMU and its endpoints."""

    def test_it_says_who_is_behind_the_iommu(self):
        _, guest, control = self.start()
        self.assertEqual(set(guest.group_types()), set(ENDPOINTS))
        for function in ENDPOINTS:
            self.assertEqual(guest.reserved(function), {(*MSI_WINDOW, "msi")})
            self.assertEqual(control.endpoint(function)["state"], "attached")

    def test_the_manual_has_it(self):
        self.assertIn(overlay("00:04.0", ["00:05.0"]), MANUAL.read_text())


class MmioTest(Arm, test_pci_endpoint.FunctionTest):
    """The IOMMU as a device of virtio-mmio, for functions on the PCI bus."""

    machine_type = MmioMachine

    def test_it_translates_functions_of_the_pci_bus(self):
        socket = self.directory / "function.sock"
        backend = self.start_backend(endpoints=(ENDPOINTS[0], f"{FIRST},soft={socket}"))
        try:
            programs = (self.selftest(), lab.arm_mmio_driver())
        except lab.Missing as missing:
            self.skipTest(str(missing))
        machine = self.start_machine(backend, functions={FIRST: socket}, programs=programs, edus=ENDPOINTS[:1])
        guest = machine.guest
        guest.run("insmod virtio_mmio")
        guest.load("virtio_iommu")
        guest.load("pci_endpoint_test")
        self.assertEqual(guest.lines("ls /sys/class/iommu"), ["a000000.virtio_mmio"])
        self.assertEqual(set(guest.group_types()), {ENDPOINTS[0], FIRST})
        self.check_selftest(guest)
        self.assert_clean(backend.control)

    def test_the_manual_has_it(self):
        self.assertIn(mmio_overlay(["00:05.0"]), MANUAL.read_text())


class ArmProbeTest(Arm, test_probe.ProbeTest):
    """`test_probe` on Arm."""

    window = None


class ArmDmaTest(test_dma.DmaCases, Arm):
    """`test_dma` on Arm."""

    keeps_mappings_without_devices = True


class ArmFaultEngineTest(Arm, test_fault_engine.StockDriverTest):
    """`test_fault_engine` on Arm, with the stock driver."""


class ArmFaultEnginePageRequestTest(Arm, test_fault_engine.PageRequestTest):
    """`test_fault_engine` on Arm, with the patched driver."""

    kernel = staticmethod(lab.arm_patched_kernel)


class ArmFaultEngineMisuseTest(Arm, test_fault_engine.MisuseTest):
    """`test_fault_engine` on Arm: wrong uses."""

    kernel = staticmethod(lab.arm_patched_kernel)


class ArmPageRequestTest(Arm, test_page_requests.PageRequestTest):
    """`test_page_requests` on Arm."""

    kernel = staticmethod(lab.arm_patched_kernel)


class ArmPasidTest(Arm, test_pasids.PasidTest):
    """`test_pasids` on Arm."""

    kernel = staticmethod(lab.arm_patched_kernel)


class ArmSharedMemoryTest(Arm, test_sva.SharedMemoryTest):
    """`test_sva` on Arm: the table of the process has the format ARM64, and the kernel has one of its own."""

    kernel = staticmethod(lab.arm_patched_kernel)
    levels = 4
    kernel_is_in_table = False
    behind = (test_sva.KERNEL_TEXT, test_sva.FAR)


class ArmSharedMemoryEndTest(Arm, test_sva_ends.SharedMemoryEndTest):
    """`test_sva_ends` on Arm."""

    kernel = staticmethod(lab.arm_patched_kernel)


class ArmTableRequestTest(Arm, test_sva_ends.RequestTest):
    """The bytes of the driver's requests for tables on Arm."""

    kernel = staticmethod(lab.arm_patched_kernel)
    levels = 4
    table_format = test_sva_ends.ARM64
    has_attributes = True


class ArmPciEndpointTest(Arm, test_pci_endpoint.PciEndpointTest):
    """`test_pci_endpoint` on Arm, where messages of interrupts pass through the ITS."""


class HostWindowTest(Arm, test_pci_endpoint.FunctionTest):
    """Linux on an Arm host reserves a window for interrupt messages, and the back-end reports it to the guest."""

    window = (0x800_0000, 0x80F_FFFF)

    def test_messages_pass(self):
        machine, backend = self.start_functions(FIRST)
        for kind in ("msi", "msix"):
            machine.guest.run(f"test-interrupts 0 {kind}")
            machine.guest.run(f"test-interrupt 0 {kind} {VECTORS}")
        self.assert_clean(backend.control)


class RegistersTest(Arm, test_pci_endpoint.FunctionTest):
    """There is no window, and the device (`--cfg odd_bits`) offers to map registers: the driver maps the doorbell."""

    backend = staticmethod(lab.odd_backend)
    window = None

    def start_backend(self, *options: str, **more: Any) -> Backend:
        return super().start_backend("--log-level", "trace", *options, **more)

    def test_registers_are_mapped_as_such_and_apart_from_memory__m75(self):
        machine, backend = self.start_functions(FIRST)
        # QEMU writes the messages, and not through this IOMMU: they would not arrive.
        machine.guest.run("test-interrupts 0 msix")
        machine.guest.run("test-interrupts 0 intx")
        machine.guest.run("test-transfer 0 copy 4096")
        registers = set()
        for request, _ in logged(backend.log):
            if request[0] == MAP:
                _, first, last, where, flags = struct.unpack_from(MAP_FIELDS, request, HEAD)
                ends = (where, where + last - first)
                self.assertEqual({end < MEMORY for end in ends}, {bool(flags & MMIO)}, request.hex())
                if flags & MMIO:
                    registers.add(where)
        self.assertEqual(registers, {MSI_WINDOW[0]})
        self.assert_clean(backend.control)


class WithoutWindowTest(Arm, test_pci_endpoint.FunctionTest):
    """Without a reserved region of type MSI the IOMMU translates interrupt messages like any write."""

    window = None
    # Linux 7.2 warns when its driver of the ITS takes back messages that the IOMMU's driver has refused.
    known_trouble = re.compile(".*/irq-gic-v3-its.c:.*")

    def test_messages_are_refused_and_intx_works(self):
        machine, backend = self.start_functions(FIRST)
        guest = machine.guest
        for kind in ("msi", "msix"):
            with self.assertRaisesRegex(GuestError, "No space left on device"):
                guest.run(f"test-interrupts 0 {kind}")
        guest.run("test-interrupts 0 intx")
        guest.run("test-interrupt 0 intx 0")
        guest.run("test-transfer 0 copy 4096")
        self.assert_clean(backend.control)

    def test_messages_need_none_in_identity_domains(self):
        machine, _ = self.start_functions(FIRST, command_line="iommu.passthrough=1")
        for kind in ("msi", "msix"):
            machine.guest.run(f"test-interrupts 0 {kind}")
            machine.guest.run(f"test-interrupt 0 {kind} {VECTORS}")


if __name__ == "__main__":
    FunctionalTest.main()
