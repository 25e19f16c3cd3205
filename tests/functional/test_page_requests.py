# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Page requests in a Linux guest with the driver of guest/linux/. A program in the guest takes them by VFIO and iommufd's
fault queue."""

from test_dma import DmaCases

from bases.paging import FIRST, IOVA, PAGE, SECOND, Call, PagingTest
from bases.sharing import own_machine
from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.guest import GuestError, pattern

# A second place for a mapping.
OTHER = IOVA + 0x10_0000
DRIVER = "/sys/bus/virtio/drivers/virtio_iommu"


class PatchedDriverDmaTest(DmaCases, FunctionalTest):
    """The cases of `test_dma` with the patched driver."""

    kernel = staticmethod(lab.patched_kernel)
    keeps_mappings_without_devices = True


class StockDriverMapTest(FunctionalTest):
    """The stock driver, which does not read the status of MAP."""

    def test_the_stock_driver_does_not_see_that_the_device_refuses_a_map(self):
        # The patched one does: test_map_that_the_device_refuses_fails_in_the_program__x60.
        _, guest, control = self.start("--max-mappings", "1")
        self.attach_vfio(guest, "first", FIRST, "one")
        guest.map("one", OTHER, PAGE, "rw", 1)
        guest.map("one", IOVA, PAGE, "rw", 5)
        self.assertEqual(control.counters()["map_failed"], 1)
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)


class PageRequestTest(PagingTest):
    """One program in the guest takes page requests, maps memory and answers."""

    shares_machines = True

    def test_features_are_negotiated_and_asked_for_at_attach_only_with_a_fault_queue__x2_x6(self):
        _, guest, control = self.start("--page-response-timeout", "0")
        self.assertEqual({"PAGE_REQUEST", "PASID"} & set(control.status()["features"]), {"PAGE_REQUEST", "PASID"})
        self.attach_vfio(guest, "one", FIRST, "plain")
        self.attach_table(guest, "two", SECOND)
        self.assertFalse(control.endpoint(FIRST)["page_requests"])
        self.assertTrue(control.endpoint(SECOND)["page_requests"])
        # Without a fault queue an access fails at once.
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.assert_clean(control)

    def test_read_of_an_unmapped_page_completes_when_the_guest_has_mapped_it__x1_x8_x31(self):
        _, guest, control = self.start_attached()
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA + 0x10, 64))
        (fault,) = self.faults(guest, "one")
        self.assertEqual((fault["address"], fault["access"], fault["last"]), (hex(IOVA), "r", "1"))
        self.assertEqual(fault["pasid"], "none")
        guest.map("one", IOVA, PAGE, "rw", 5)
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(5, PAGE)[0x10:0x50])
        self.assert_answered(control, 1)

    def test_write_over_several_pages_is_mapped_page_by_page(self):
        _, guest, control = self.start_attached()
        data = bytes(range(256)) * (3 * PAGE // 256)
        writer = self.connect()
        write = Call(lambda: writer.dma_write(FIRST, IOVA, data))
        for page in range(IOVA, IOVA + 3 * PAGE, PAGE):
            (fault,) = self.faults(guest, "one")
            self.assertEqual((fault["address"], fault["access"]), (hex(page), "w"))
            guest.map("one", page, PAGE, "rw", 0)
            guest.run(f"answer one {fault['cookie']} success")
        write.result()
        for page in range(3):
            self.assertEqual(guest.peek("one", IOVA + page * PAGE, 256), bytes(range(256)))
        self.assert_answered(control, 3)

    def test_group_of_many_requests_arrives_whole_and_has_one_answer__x39(self):
        _, guest, control = self.start_attached()
        asker = self.connect()
        pages = [{"iova": IOVA + i * PAGE, "access": "rw"} for i in range(40)]
        call = Call(lambda: asker.execute("page-request", endpoint=FIRST, pages=pages))
        faults = self.faults(guest, "one")
        self.assertEqual(len(faults), 40)
        self.assertEqual({fault["address"] for fault in faults}, {hex(page["iova"]) for page in pages})
        self.assertEqual(len({fault["cookie"] for fault in faults}), 1)
        self.assertEqual([fault["last"] for fault in faults], ["0"] * 39 + ["1"])
        guest.run(f"answer one {faults[0]['cookie']} success")
        call.result()
        self.assert_answered(control, 1)

    def test_invalid_answer_fails_the_access(self):
        _, guest, control = self.start_attached()
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 64))
        (fault,) = self.faults(guest, "one")
        guest.run(f"answer one {fault['cookie']} invalid")
        self.assert_refused("PageRequestFailed", read.result)
        # A second answer meets nothing.
        with self.assertRaises(GuestError):
            guest.run(f"answer one {fault['cookie']} success")
        self.assert_answered(control, 1)

    @own_machine
    def test_map_that_the_device_refuses_fails_in_the_program__x60(self):
        _, guest, control = self.start_attached("--max-mappings", "1")
        guest.map("one", OTHER, PAGE, "rw", 1)
        reader = self.connect()
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        with self.assertRaisesRegex(GuestError, "memory"):
            guest.map("one", IOVA, PAGE, "rw", 5)
        guest.run(f"answer one {fault['cookie']} invalid")
        self.assert_refused("PageRequestFailed", read.result)
        # The driver knows nothing of that mapping either, and the one before is as it was.
        self.assertEqual(reader.dma_read(FIRST, OTHER, 16), pattern(1, 16))
        guest.unmap("one", OTHER, PAGE)
        read = Call(lambda: reader.dma_read(FIRST, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        guest.map("one", IOVA, PAGE, "rw", 5)
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(5, 16))
        counters = control.counters()
        self.assertEqual((counters["map_failed"], counters["unmap_failed"]), (1, 0))

    def test_endpoint_that_is_not_answered_does_not_hold_up_another(self):
        _, guest, control = self.start_attached()
        self.attach_table(guest, "two", SECOND)
        first, second = self.connect(), self.connect()
        stuck = Call(lambda: first.dma_read(FIRST, IOVA, 16))
        self.wait_until("the first fault", lambda: control.counters()["page_request_groups_delivered"] == 1)
        read = Call(lambda: second.dma_read(SECOND, IOVA, 16))
        (fault,) = self.faults(guest, "two")
        guest.map("two", IOVA, PAGE, "r", 9)
        guest.run(f"answer two {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(9, 16))
        (fault,) = self.faults(guest, "one")
        guest.run(f"answer one {fault['cookie']} invalid")
        self.assert_refused("PageRequestFailed", stuck.result)
        self.assert_answered(control, 2)

    def test_detach_ends_the_groups_that_wait__x40_x61(self):
        _, guest, control = self.start_attached()
        asker = self.connect()
        read = Call(lambda: asker.dma_read(FIRST, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        guest.run("detach one")
        self.assert_refused("PageRequestFailed", read.result)
        # The guest's kernel has answered too, and did not mind that it was late.
        with self.assertRaises(GuestError):
            guest.run(f"answer one {fault['cookie']} success")
        guest.run("attach-table one one")
        read = Call(lambda: asker.dma_read(FIRST, IOVA, 16))
        (fault,) = self.faults(guest, "one")
        guest.map("one", IOVA, PAGE, "r", 3)
        guest.run(f"answer one {fault['cookie']} success")
        self.assertEqual(read.result(), pattern(3, 16))
        self.assert_clean(control)

    @own_machine
    def test_driver_is_unbound_with_endpoints_present(self):
        _, guest, control = self.start()
        device = next(name for name in guest.lines(f"ls {DRIVER}") if name.startswith("virtio"))
        guest.run(f"write {DRIVER}/unbind {device}")
        self.assertEqual(guest.group_types(), {})
        self.assertEqual(control.status()["domains"], [])


if __name__ == "__main__":
    FunctionalTest.main()
