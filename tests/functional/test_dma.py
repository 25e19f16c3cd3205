# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A guest makes mappings with VFIO, and the endpoint reaches what they map and nothing else. On the lab kernel VFIO uses
iommufd, on Debian's packaged kernel containers."""

from typing import TYPE_CHECKING

from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.control import endpoint_id
from lab_kit.vm.guest import pattern
from lab_kit.vm.machine import ENDPOINTS

FIRST, SECOND = ENDPOINTS
IOVA = 0x100_0000
LENGTH = 0x4000
SEED = 7


def fault(function: str, address: int, access: str) -> str:
    """The driver's words for a fault report with reason MAPPING."""
    return f"page fault from EP {endpoint_id(function)} at {address:#x} [{access}]"


# Only a type checker sees the cases as a test case: a test runner is not to run them by themselves.
if TYPE_CHECKING:
    Base = FunctionalTest
else:
    Base = object


class DmaCases(Base):
    """The cases; the classes below say on which kernel."""

    shares_machines = True
    # Whether an address space outlives the detaching of its last device.
    keeps_mappings_without_devices: bool

    def start_with_buffer(self, access: str = "rw"):
        """A guest with a buffer mapped for the first endpoint."""
        machine, guest, control = self.start()
        self.attach_vfio(guest, "first", FIRST, "one")
        guest.map("one", IOVA, LENGTH, access, SEED)
        guest.mark_log()
        return machine, guest, control

    def test_mapped_buffer_is_read_from_outside(self):
        _, _, control = self.start_with_buffer()
        self.assertEqual(control.dma_read(FIRST, IOVA, LENGTH), pattern(SEED, LENGTH))
        self.assert_clean(control)

    def test_mapped_buffer_is_written_from_outside(self):
        _, guest, control = self.start_with_buffer()
        data = bytes(range(64))
        # Across a page boundary: the pages need not be neighbours in guest memory.
        control.dma_write(FIRST, IOVA + 0x1000 - 32, data)
        self.assertEqual(guest.peek("one", IOVA + 0x1000 - 32, 64), data)
        self.assertEqual(guest.peek("one", IOVA, 64), pattern(SEED, 64))
        self.assert_clean(control)

    def test_what_the_guest_writes_is_read_from_outside(self):
        _, guest, control = self.start_with_buffer()
        guest.run(f"poke one {IOVA + 16:#x} 00112233445566778899")
        self.assertEqual(control.dma_read(FIRST, IOVA + 16, 10), bytes.fromhex("00112233445566778899"))

    def test_status_shows_the_mapping(self):
        _, _, control = self.start_with_buffer()
        domain = control.domain(FIRST)
        self.assertEqual(domain["kind"], "paging")
        self.assertEqual(domain["endpoints"], [endpoint_id(FIRST)])
        self.assertEqual(domain["bytes"], LENGTH)
        mappings = control.execute("mappings", domain=domain["id"])
        self.assertEqual(len(mappings), domain["mappings"])
        self.assertEqual(mappings[0]["iova"], IOVA)
        self.assertEqual(mappings[-1]["last"], IOVA + LENGTH - 1)

    def test_write_to_read_only_mapping_is_blocked_and_logged(self):
        _, guest, control = self.start_with_buffer("r")
        self.assertEqual(control.dma_read(FIRST, IOVA, 64), pattern(SEED, 64))
        self.assert_refused("PermissionFault", control.dma_write, FIRST, IOVA + 0x1010, b"\xff" * 8)
        guest.wait_log(fault(FIRST, IOVA + 0x1010, "W"))
        guest.run(f"verify one {IOVA:#x} {LENGTH:#x} {SEED}")
        self.assertEqual(control.counters()["fault_reports"], 1)
        self.assert_clean(control)

    def test_access_to_unmapped_address_is_blocked_and_logged(self):
        _, guest, control = self.start_with_buffer()
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA - 0x1000, 16)
        guest.wait_log(fault(FIRST, IOVA - 0x1000, "R"))
        self.assert_refused("TranslationFault", control.dma_write, FIRST, IOVA + LENGTH, b"x")
        guest.wait_log(fault(FIRST, IOVA + LENGTH, "W"))
        self.assert_clean(control)

    def test_access_across_the_end_is_blocked_at_the_first_byte_beyond(self):
        _, guest, control = self.start_with_buffer()
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA + LENGTH - 8, 16)
        guest.wait_log(fault(FIRST, IOVA + LENGTH, "R"))

    def test_unmapped_buffer_is_out_of_reach(self):
        _, guest, control = self.start_with_buffer()
        self.assertEqual(control.dma_read(FIRST, IOVA, 16), pattern(SEED, 16))
        guest.unmap("one", IOVA, LENGTH)
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        guest.wait_log(fault(FIRST, IOVA, "R"))
        self.assertEqual(control.domain(FIRST)["bytes"], 0)
        self.assert_clean(control)

    def test_detached_endpoint_reaches_nothing(self):
        _, guest, control = self.start_with_buffer()
        guest.run("detach first")
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        guest.wait_log(f"fault from EP {endpoint_id(FIRST)} at {IOVA:#x} [R]")
        self.assert_clean(control)

    def test_mapping_is_there_again_after_detach_and_attach(self):
        _, guest, control = self.start_with_buffer()
        guest.run("detach first")
        if self.keeps_mappings_without_devices:
            guest.run("attach first one")
        else:
            guest.run("ioas again")
            guest.run("attach first again")
            guest.map("again", IOVA, LENGTH, "rw", SEED)
        self.assertEqual(control.dma_read(FIRST, IOVA, LENGTH), pattern(SEED, LENGTH))
        self.assert_clean(control)

    def test_two_endpoints_in_two_domains_see_their_own_buffers(self):
        _, guest, control = self.start_with_buffer()
        self.attach_vfio(guest, "second", SECOND, "two")
        guest.map("two", IOVA, LENGTH, "rw", SEED + 1)
        self.assertNotEqual(control.endpoint(FIRST)["domain"], control.endpoint(SECOND)["domain"])
        self.assertEqual(control.dma_read(FIRST, IOVA, LENGTH), pattern(SEED, LENGTH))
        self.assertEqual(control.dma_read(SECOND, IOVA, LENGTH), pattern(SEED + 1, LENGTH))
        guest.unmap("one", IOVA, LENGTH)
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.assertEqual(control.dma_read(SECOND, IOVA, LENGTH), pattern(SEED + 1, LENGTH))
        self.assert_clean(control)

    def test_two_endpoints_in_one_domain_see_the_same_buffer(self):
        _, guest, control = self.start_with_buffer()
        guest.open_vfio("second", SECOND)
        guest.run("attach second one")
        self.assertEqual(control.endpoint(FIRST)["domain"], control.endpoint(SECOND)["domain"])
        control.dma_write(SECOND, IOVA, b"written by the second endpoint")
        self.assertEqual(control.dma_read(FIRST, IOVA, 30), b"written by the second endpoint")
        guest.run("detach second")
        self.assert_refused("TranslationFault", control.dma_read, SECOND, IOVA, 16)
        self.assertEqual(control.dma_read(FIRST, IOVA, 30), b"written by the second endpoint")
        self.assert_clean(control)

    def test_large_buffer_is_reached_at_both_ends(self):
        _, guest, control = self.start_with_buffer()
        length = 64 << 20
        guest.map("one", 0x1_0000_0000, length, "rw", 1)
        self.assertEqual(control.dma_read(FIRST, 0x1_0000_0000, 4096), pattern(1, 4096))
        control.dma_write(FIRST, 0x1_0000_0000 + length - 4, b"last")
        self.assertEqual(guest.peek("one", 0x1_0000_0000 + length - 4, 4), b"last")
        self.assertEqual(control.domain(FIRST)["bytes"], LENGTH + length)
        guest.unmap("one", 0x1_0000_0000, length)
        self.assertEqual(control.domain(FIRST)["bytes"], LENGTH)
        self.assert_clean(control)


class LabKernelDmaTest(DmaCases, FunctionalTest):
    """The lab kernel: VFIO on iommufd."""

    kernel = staticmethod(lab.lab_kernel)
    keeps_mappings_without_devices = True


class DebianKernelDmaTest(DmaCases, FunctionalTest):
    """Debian's packaged kernel: VFIO containers."""

    kernel = staticmethod(lab.debian_kernel)
    # The last group that leaves a container takes the mappings with it.
    keeps_mappings_without_devices = False


if __name__ == "__main__":
    FunctionalTest.main()
