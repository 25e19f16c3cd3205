# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Memory and endpoints that come and go while the guest runs."""

from bases.testcase import UNKNOWN_TO_GUEST, FunctionalTest
from lab_kit.vm.guest import pattern
from lab_kit.vm.machine import ENDPOINTS

# QEMU puts the first module above 4 GiB where the guest has no memory there.
FIRST = 1 << 32
LENGTH = 256 << 20
# Linux' unit of memory that comes and goes, on x86.
BLOCK = 128 << 20

IOVA = 0x100_0000
PAGE = 0x1000

BUS = "01"
PLUGGED = "01:00.0"


class HotPlugTest(FunctionalTest):
    """Memory modules, and endpoints in slots of PCI Express."""

    def test_module_of_memory_comes_and_goes(self):
        machine, guest, control = self.start(extra=("-m", "512M,slots=1,maxmem=2G"))
        data = pattern(5, 8192)

        def regions() -> list[tuple[int, int]]:
            return [(region["gpa"], region["length"]) for region in control.status()["memory"]]

        before = regions()
        self.assert_refused("TranslationFault", control.dma_write, UNKNOWN_TO_GUEST, FIRST, data)
        machine.plug_memory(LENGTH)
        self.wait_until("the memory", lambda: (FIRST, LENGTH) in regions())
        self.assertEqual(set(before), set(regions()) - {(FIRST, LENGTH)})
        # Both ends, in bypass.
        for address in (FIRST, FIRST + LENGTH - len(data)):
            control.dma_write(UNKNOWN_TO_GUEST, address, data)
            self.assertEqual(machine.read_physical(address, len(data)), data)

        # The guest knows of it and does not use it yet: it lets it go.
        self.assertIn(f"memory{FIRST // BLOCK}", guest.lines("ls /sys/devices/system/memory"))
        machine.unplug_memory()
        self.wait_until("its end", lambda: regions() == before)
        self.assert_refused("TranslationFault", control.dma_write, UNKNOWN_TO_GUEST, FIRST, data)
        self.assert_clean(control)

    def test_mapping_waits_for_memory(self):
        machine, guest, control = self.start(extra=("-m", "512M,slots=1,maxmem=2G"))
        guest.only_containers()
        self.attach_vfio(guest, "dev", ENDPOINTS[0], "space")
        guest.map_physical("space", IOVA, 2 * PAGE, "rw", FIRST)
        guest.map_physical("space", IOVA + 2 * PAGE, PAGE, "r", FIRST + LENGTH - PAGE)
        data, memory = pattern(6, 2 * PAGE), len(control.status()["memory"])
        for _ in range(2):
            for iova in (IOVA, IOVA + 2 * PAGE):
                self.assert_refused("TranslationFault", control.dma_read, ENDPOINTS[0], iova, 16)
            machine.plug_memory(LENGTH)
            control.dma_write(ENDPOINTS[0], IOVA, data)
            self.assertEqual(machine.read_physical(FIRST, 2 * PAGE), data)
            self.assertEqual(control.dma_read(ENDPOINTS[0], IOVA + 2 * PAGE, 16), bytes(16))
            self.assert_refused("PermissionFault", control.dma_write, ENDPOINTS[0], IOVA + 2 * PAGE, data)
            machine.unplug_memory()
            self.wait_until("its end", lambda: len(control.status()["memory"]) == memory)
        self.assert_clean(control)

    def test_endpoint_comes_goes_and_comes_on_a_bus_that_the_viot_names(self):
        backend = self.start_backend(endpoints=(ENDPOINTS[0],))
        # The lab kernel knows PCI Express' own way alone.
        extra = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
        extra += ["-device", "pcie-root-port,id=rp0,chassis=1,addr=2.0"]
        machine = self.start_machine(
            backend, endpoints=(ENDPOINTS[0], BUS), edus=(ENDPOINTS[0],), extra=extra
        )
        guest, control = machine.guest, backend.control
        guest.load("virtio_iommu")
        for _ in range(2):
            # The device first would be one that the IOMMU does not know.
            control.execute("endpoint-add", endpoint=PLUGGED)
            machine.qmp("device_add", driver="edu", id="plugged", bus="rp0")
            self.wait_until("the endpoint", lambda: PLUGGED in guest.group_types())
            guest.find_devices()
            self.assertEqual(control.endpoint(PLUGGED)["state"], "attached")
            machine.unplug("plugged")
            machine.wait_event("DEVICE_DELETED")
            control.execute("endpoint-remove", endpoint=PLUGGED)
        self.assertIn(ENDPOINTS[0], guest.group_types())
        self.assert_clean(control)


if __name__ == "__main__":
    FunctionalTest.main()
