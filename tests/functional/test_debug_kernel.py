# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The tests of the drivers again, on the debug kernel and on two processors. The debug kernel checks itself with lockdep,
KASAN and others (guest/kernel/debug.config). If its log has a report, the test fails: `FunctionalTest._check`."""

import re

import test_bypass
import test_dma
import test_driver_requests
import test_fault_engine
import test_hot_plug
import test_lifecycle
import test_load
import test_next_kernel
import test_odd_bits
import test_page_request_corners
import test_page_request_ends
import test_page_requests
import test_pasids
import test_pci_endpoint
import test_probe
import test_qmp
import test_suspend
import test_sva
import test_sva_ends
import test_table_domains

from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.machine import Machine

CRASH = "/sys/kernel/debug/provoke-crash/DIRECT"


class DebugKernel:
    """What the classes have in common.

    no5lvl: while Linux 7.2 identifies its processor, the flag for five levels of page tables is clear. If an interrupt
    comes then, KASAN reports any address as wild. lpj: on a busy machine, a second processor cannot measure its delay
    loop while the first is emulated too. The value is about right for 2.5 GHz, and does not have to be.
    """

    processors = 2
    command_line = "no5lvl lpj=10000000"


class PcieHotPlug(DebugKernel):
    """Devices that come and go in slots of PCI Express. When a device comes, pciehp takes its locks in a circle; when a
    device of vfio-pci goes, it does so too (Linux 7.2, also with the stock driver). lockdep reports the first circle and
    then checks nothing more; KASAN goes on."""

    kernel = staticmethod(lab.debug_patched_kernel)
    known_trouble = re.compile(
        "WARNING: possible circular locking dependency((?!</TASK>).)* pciehp_ist.*?</TASK>", re.DOTALL
    )


class ReportTest(DebugKernel, FunctionalTest):
    """A bug in the debug kernel fails a test."""

    kernel = staticmethod(lab.debug_kernel)

    def _check(self, machine: Machine) -> None:
        with self.assertRaisesRegex(AssertionError, "KASAN: slab-use-after-free"):
            super()._check(machine)

    def test_use_after_free_is_reported_and_seen(self):
        machine = self.start_machine(self.start_backend())
        machine.guest.load("lkdtm")
        machine.guest.run(f"write {CRASH} READ_AFTER_FREE")
        machine.console.wait_for("KASAN: slab-use-after-free", 60)


class StockDriverTest(DebugKernel, test_dma.DmaCases, FunctionalTest):
    """`test_dma` on the debug kernel."""

    kernel = staticmethod(lab.debug_kernel)
    keeps_mappings_without_devices = True


class PatchedDriverDmaTest(DebugKernel, test_page_requests.PatchedDriverDmaTest):
    """`test_dma` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class PatchedDriverPageRequestTest(DebugKernel, test_page_requests.PageRequestTest):
    """`test_page_requests` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)

    def test_locks_are_still_checked_after_page_requests(self):
        """lockdep goes off for good with its first report, and when its tables are full."""
        _, guest, _ = self.start_attached()
        reader = self.connect()
        read = test_page_requests.Call(lambda: reader.dma_read(test_dma.FIRST, test_dma.IOVA, 16))
        (fault,) = self.faults(guest, "one")
        guest.map("one", test_dma.IOVA, test_dma.LENGTH, "r", 1)
        guest.run(f"answer one {fault['cookie']} success")
        read.result()
        guest.run("detach one")
        checking = [line.split()[-1] for line in guest.lines("cat /proc/lockdep_stats") if "debug_locks:" in line]
        self.assertEqual(checking, ["1"])


class StockDriverBypassTest(DebugKernel, test_bypass.BypassTest):
    """`test_bypass` on the debug kernel."""

    kernel = staticmethod(lab.debug_kernel)


class StockDriverProbeTest(DebugKernel, test_probe.ProbeTest):
    """`test_probe` on the debug kernel."""

    kernel = staticmethod(lab.debug_kernel)


class StockDriverRequestTest(DebugKernel, test_driver_requests.StockDriverTest):
    """`test_driver_requests` on the debug kernel."""

    kernel = staticmethod(lab.debug_kernel)


class StockDriverFaultEngineTest(DebugKernel, test_fault_engine.StockDriverTest):
    """`test_fault_engine` on the debug kernel, with the stock driver."""

    kernel = staticmethod(lab.debug_kernel)


class StockDriverLoadTest(DebugKernel, test_load.LoadTest):
    """`test_load` on the debug kernel, where a mapping takes many times as long."""

    most = test_load.MANY
    kernel = staticmethod(lab.debug_kernel)


class PatchedDriverRequestTest(DebugKernel, test_driver_requests.PatchedDriverTest):
    """`test_driver_requests` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class PatchedDriverLifecycleTest(DebugKernel, test_lifecycle.LifecycleTest):
    """`test_lifecycle` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class PatchedDriverShutdownTest(DebugKernel, test_lifecycle.PatchedDriverShutdownTest):
    """The shutdown test of `test_lifecycle` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class NextKernelTest(DebugKernel, test_next_kernel.NextKernelTest):
    """`test_next_kernel` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class PasidTest(DebugKernel, test_pasids.PasidTest):
    """`test_pasids` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class SharedMemoryTest(DebugKernel, test_sva.SharedMemoryTest):
    """`test_sva` on the patched debug kernel."""

    levels = 4
    kernel = staticmethod(lab.debug_patched_kernel)


class SharedMemoryEndTest(DebugKernel, test_sva_ends.SharedMemoryEndTest):
    """`test_sva_ends` on the patched debug kernel."""

    levels = 4
    kernel = staticmethod(lab.debug_patched_kernel)


class PatchedDriverCornerTest(DebugKernel, test_page_request_corners.PageRequestCornerTest):
    """`test_page_request_corners` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class PatchedDriverEndTest(PcieHotPlug, test_page_request_ends.PageRequestEndTest):
    """`test_page_request_ends` on the patched debug kernel."""


class PatchedDriverSuspendTest(DebugKernel, test_suspend.SuspendTest):
    """`test_suspend` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class TableDomainTest(DebugKernel, test_table_domains.TableDomainTest):
    """`test_table_domains` on the patched debug kernel: what programs map."""

    kernel = staticmethod(lab.debug_patched_kernel)


class TableDriverTest(DebugKernel, test_table_domains.TableDriverTest):
    """`test_table_domains` on the patched debug kernel: what drivers map."""

    kernel = staticmethod(lab.debug_patched_kernel)


class PatchedDriverSuspendToMemoryTest(DebugKernel, test_suspend.SuspendToMemoryTest):
    """`test_suspend` on the patched debug kernel, as far as S3."""

    kernel = staticmethod(lab.debug_patched_kernel)


class FaultEnginePageRequestTest(DebugKernel, test_fault_engine.PageRequestTest):
    """`test_fault_engine` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class FaultEngineMisuseTest(DebugKernel, test_fault_engine.MisuseTest):
    """`test_fault_engine` on the patched debug kernel: wrong uses."""

    kernel = staticmethod(lab.debug_patched_kernel)


class PciEndpointTest(DebugKernel, test_pci_endpoint.PciEndpointTest):
    """`test_pci_endpoint` on the debug kernel."""

    kernel = staticmethod(lab.debug_kernel)


class PatchedDriverPciEndpointTest(DebugKernel, test_pci_endpoint.PatchedDriverTest):
    """`test_pci_endpoint` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class OddBitsTest(DebugKernel, test_odd_bits.PatchedDriverTest):
    """`test_odd_bits` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class OddBitsPasidTest(DebugKernel, test_odd_bits.PatchedDriverPasidTest):
    """The PASIDs of `test_odd_bits` on the patched debug kernel."""

    kernel = staticmethod(lab.debug_patched_kernel)


class HotPlugTest(PcieHotPlug, test_hot_plug.HotPlugTest):
    """`test_hot_plug` on the patched debug kernel."""


class QmpTest(PcieHotPlug, test_qmp.QmpTest):
    """`test_qmp` on the patched debug kernel."""


if __name__ == "__main__":
    FunctionalTest.main()
