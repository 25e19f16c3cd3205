# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A process, a driver, a device or the guest goes away while groups of page requests wait for an answer."""

from bases.paging import FIRST, IOVA, PAGE, Call, PagingTest
from lab_kit.vm.control import Control
from lab_kit.vm.guest import Guest, pattern
from lab_kit.vm.machine import Machine

PLUGGED = "01:00.0"
PCI = "/sys/bus/pci"
VFIO = f"{PCI}/drivers/vfio-pci"
# What the kernel says when it waits for the owner of a device that is to go.
BLOCKED = "blocked until released by user"


class PageRequestEndTest(PagingTest):
    """Each test removes what should answer in another way."""

    def fault(self, guest: Guest, function: str = FIRST) -> tuple[Call, str]:
        """An endpoint's read that waits for an answer, and the cookie to answer with."""
        reader = self.connect()
        read = Call(lambda: reader.dma_read(function, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        return read, fault["cookie"]

    def complete(self, guest: Guest, read: Call, cookie: str) -> None:
        guest.map("one", IOVA, PAGE, "r", 3)
        guest.run(f"answer one {cookie} success")
        self.assertEqual(read.result(), pattern(3, 16))

    def check_from_scratch(self, guest: Guest, control: Control, function: str = FIRST) -> None:
        """Page requests work, from the opening of the endpoint on."""
        self.attach_table(guest, "one", function)
        self.complete(guest, *self.fault(guest, function))
        self.assert_clean(control)

    def test_process_is_killed__x40(self):
        _, guest, control = self.start("--page-response-timeout", "0")
        guest.run("child")
        self.attach_table(guest, "one", FIRST)
        read, _ = self.fault(guest)
        # Another one that the process has not read yet.
        asker = self.connect()
        unread = Call(lambda: asker.execute("page-request", endpoint=FIRST, pages=[{"iova": IOVA, "access": "w"}]))
        self.wait_until("both", lambda: control.counters()["page_request_groups_delivered"] == 2)
        self.assertEqual(guest.run("kill"), "signal 9")
        self.assert_refused("PageRequestFailed", read.result)
        self.assertEqual(unread.result()["response"], "invalid-request")
        self.check_from_scratch(guest, control)

    def test_endpoint_s_driver_is_unbound(self):
        _, guest, control = self.start_attached()
        read, _ = self.fault(guest)
        guest.mark_log()
        guest.run(f"background write {VFIO}/unbind 0000:{FIRST}")
        guest.wait_log(BLOCKED)
        self.assertTrue(read.is_alive())
        guest.run("close one")
        guest.run("background-wait")
        self.assert_refused("PageRequestFailed", read.result)
        guest.run("table-free one")
        guest.run("ioas-free one")
        self.check_from_scratch(guest, control)

    def test_endpoint_is_removed_by_the_guest_and_found_again(self):
        _, guest, control = self.start_attached()
        read, _ = self.fault(guest)
        guest.mark_log()
        guest.run(f"background write {PCI}/devices/0000:{FIRST}/remove 1")
        guest.wait_log(BLOCKED)
        self.assertTrue(read.is_alive())
        guest.run("close one")
        guest.run("background-wait")
        self.assert_refused("PageRequestFailed", read.result)
        self.assertNotIn(FIRST, guest.group_types())
        guest.run("table-free one")
        guest.run("ioas-free one")
        guest.find_devices()
        self.assertIn(FIRST, guest.group_types())
        self.check_from_scratch(guest, control)

    def start_with_port(self) -> tuple[Machine, Guest, Control]:
        """The endpoint is in a slot that it can be taken out of."""
        # The lab kernel knows PCI Express' own way alone.
        extra = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
        extra += ["-device", "pcie-root-port,id=rp0,chassis=1,addr=2.0"]
        extra += ["-device", "edu,id=plugged,bus=rp0"]
        endpoints = (FIRST, PLUGGED)
        machine, guest, control = self.start(
            "--page-response-timeout", "0", endpoints=endpoints, edus=(FIRST,), extra=extra
        )
        self.attach_table(guest, "one", PLUGGED)
        return machine, guest, control

    def test_endpoint_is_unplugged(self):
        machine, guest, control = self.start_with_port()
        read, _ = self.fault(guest, PLUGGED)
        guest.mark_log()
        machine.unplug("plugged")
        guest.wait_log(BLOCKED)
        self.assertTrue(read.is_alive())
        guest.run("close one")
        self.assert_refused("PageRequestFailed", read.result)
        machine.wait_event("DEVICE_DELETED")
        self.assertIsNone(control.endpoint(PLUGGED)["domain"])
        guest.run("table-free one")
        guest.run("ioas-free one")
        machine.qmp("device_add", driver="edu", id="again", bus="rp0")
        self.wait_until("the endpoint", lambda: PLUGGED in guest.group_types())
        guest.find_devices()
        self.check_from_scratch(guest, control, PLUGGED)

    def test_guest_reboots(self):
        _, guest, control = self.start_attached()
        read, _ = self.fault(guest)
        guest.run("reboot")
        guest.wait_ready()
        # Until a driver starts anew, QEMU's reset looks like a pause.
        guest.load("virtio_iommu")
        self.assert_refused("PageRequestFailed", read.result)
        self.check_from_scratch(guest, control)

    def test_guest_is_reset_without_its_help(self):
        machine, guest, control = self.start_attached()
        read, _ = self.fault(guest)
        machine.qmp("system_reset")
        guest.wait_ready()
        guest.load("virtio_iommu")
        self.assert_refused("PageRequestFailed", read.result)
        self.check_from_scratch(guest, control)

    def test_guest_is_paused_and_answers_afterwards(self):
        machine, guest, control = self.start_attached()
        read, cookie = self.fault(guest)
        machine.qmp("stop")
        machine.qmp("cont")
        self.complete(guest, read, cookie)
        self.assertEqual(control.counters()["page_response_stale"], 0)

    def test_page_request_while_paused_arrives_afterwards(self):
        machine, guest, control = self.start_attached()
        machine.qmp("stop")
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
        self.wait_until("the page request", lambda: control.counters()["page_request_groups"] == 1)
        self.assertEqual(control.counters()["page_request_groups_delivered"], 0)
        machine.qmp("cont")
        (fault,) = self.faults(guest, "one")
        self.complete(guest, read, fault["cookie"])
        self.assert_answered(control, 1)

    def test_time_out_stands_still_while_paused(self):
        machine, guest, control = self.start("--page-response-timeout", "5")
        self.attach_table(guest, "one", FIRST)
        read, cookie = self.fault(guest)
        machine.qmp("stop")
        self.assertTrue(read.waits(7), "the time-out passes while the guest stands still")
        machine.qmp("cont")
        self.assert_refused("PageRequestFailed", read.result)
        guest.run(f"answer one {cookie} success")
        counters = control.counters()
        self.assertEqual((counters["page_request_timeouts"], counters["page_response_stale"]), (1, 1))
        self.assert_clean(control)


if __name__ == "__main__":
    PagingTest.main()
