# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Page requests that start in this machine's kernel: its iommufd, the back-end, and a guest with the patched driver.

The endpoint is a device on the kernel's mock bus: nothing but the hardware is replaced. The guest sees an `edu`
function in its place.
"""

from memory import GuestMemory
from mock import READ, WRITE, FaultQueue, Iommufd, MockDevice

from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.control import Control
from lab_kit.vm.guest import Guest, GuestError, pattern
from lab_kit.vm.machine import ENDPOINTS

FUNCTION = ENDPOINTS[0]
PAGE = 0x1000
# Mock devices address 16 MiB to 2 GiB - 1.
IOVA = 0x200_0000
# The kernel hands out the lowest free cookie: with one group at a time it is this one.
COOKIE = 1


def fields(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split())


class MockPageRequestTest(FunctionalTest):
    kernel = staticmethod(lab.patched_kernel)
    backend = staticmethod(lab.test_backend)

    iommufd: Iommufd
    device: MockDevice
    queue: FaultQueue
    control: Control
    guest: Guest
    memory: GuestMemory

    def setUp(self) -> None:
        super().setUp()
        self.iommufd = Iommufd()
        self.addCleanup(self.iommufd.close)
        self.device = self.iommufd.device()
        backend = self.start_backend(
            "--page-response-timeout", "0", "--iommufd-fd", str(self.iommufd.fd),
            endpoints=(f"{FUNCTION},mock={self.device.stdev},dev-id={self.device.dev}",),
            inherited=(self.iommufd.fd,),
        )  # fmt: skip
        self.control = backend.control
        self.queue = FaultQueue(backend.process.pid)
        self.addCleanup(self.queue.close)
        machine = self.start_machine(backend, endpoints=(FUNCTION,))
        self.memory = GuestMemory(machine.process.pid)
        self.addCleanup(self.memory.close)
        self.guest = machine.guest
        self.guest.load("virtio_iommu")
        self.guest.open_vfio("device", FUNCTION)
        self.guest.run("ioas space")
        self.guest.run("table table device space")
        self.guest.run("attach-table device table")

    def ask(self, access: int, iova: int) -> dict[str, str]:
        """The device asks for a page: the request as the guest's program reads it."""
        self.iommufd.page_request(self.device, 7, access, iova)
        (line,) = self.guest.lines("faults table 60")
        return fields(line)

    def page_in(self, access: int, iova: int) -> dict[str, str]:
        """The same; the guest's program serves it from its buffers."""
        self.iommufd.page_request(self.device, 7, access, iova)
        (line,) = self.guest.lines("page-in table space 1 60")
        return fields(line)

    def maps(self, seed: int) -> bool:
        """Whether the device's page table leads from IOVA to the guest's buffer of one page with this pattern."""
        (address,) = self.memory.find(pattern(seed, PAGE))
        return self.iommufd.maps(self.device, IOVA, PAGE, address)

    def assert_ended(self, **expected: int) -> None:
        """Asserts how many groups ended in each way, and that the kernel waits for no answer."""
        counters = self.control.counters()
        names = ("success", "invalid", "withdrawn")
        ended = {name: counters[f"page_request_{name}"] for name in names}
        self.assertEqual(ended, {**dict.fromkeys(names, 0), **expected})
        self.assertFalse(self.queue.takes_answer(COOKIE))
        self.assert_clean(self.control)

    def test_guest_maps_what_the_kernel_asks_for_and_answers(self):
        self.guest.run(f"buffer space {IOVA:#x} {PAGE:#x} 5")
        self.assertFalse(self.maps(5))
        served = self.page_in(WRITE, IOVA)
        self.assertEqual((served["address"], served["access"], served["answer"]), (hex(IOVA), "w", "success"))
        self.assertTrue(self.maps(5))
        self.assert_ended(success=1)

        # Nothing is there for it.
        served = self.page_in(READ, IOVA + PAGE)
        self.assertEqual((served["address"], served["access"], served["answer"]), (hex(IOVA + PAGE), "r", "invalid"))
        self.assert_ended(success=1, invalid=1)
        self.assertTrue(self.maps(5))

    def test_detach_ends_the_group_that_waits(self):
        fault = self.ask(READ, IOVA)
        self.guest.run("detach device")
        self.assert_ended(withdrawn=1)
        # The guest's kernel has answered too, and did not mind that it was late.
        with self.assertRaises(GuestError):
            self.guest.run(f"answer table {fault['cookie']} success")
        self.guest.run("attach-table device table")
        self.guest.run(f"buffer space {IOVA:#x} {PAGE:#x} 9")
        self.assertEqual(self.page_in(READ, IOVA)["answer"], "success")
        self.assertTrue(self.maps(9))
        self.assert_ended(withdrawn=1, success=1)

    def test_kernel_that_has_its_answer_already_is_no_harm(self):
        fault = self.ask(READ, IOVA)
        # Somebody else with the queue is faster. That is also how this test knows what an open group looks like.
        self.assertTrue(self.queue.takes_answer(COOKIE))
        self.guest.run(f"answer table {fault['cookie']} success")
        self.guest.run(f"buffer space {IOVA:#x} {PAGE:#x} 9")
        self.assertEqual(self.page_in(READ, IOVA)["answer"], "success")
        self.assertTrue(self.maps(9))
