# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A device that comes while the guest runs, goes, and comes again."""

import os

from edu import Edu
from kernel_log import KernelLog
from passthrough import EDU, PassthroughMachine, PassthroughTest, bind, functions, vfio_device

from lab_kit.vm.control import Control
from lab_kit.vm.guest import TIMEOUT, pattern

COLD = "00:05.0"
# The lab kernel knows PCI Express' own way alone.
PORT = (
    "-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
    "-device", "pcie-root-port,id=root-port,chassis=8,slot=8,addr=08.0",
)  # fmt: skip
HOT, BUS = "01:00.0", "01"
FROM, TO = 0x200_0000, 0x300_0000
PAGE = 0x1000


class HotPlugTest(PassthroughTest):
    def plug(self, machine: PassthroughMachine, control: Control, function: str, **keys: str) -> None:
        """QEMU binds the device, the back-end takes it over, and only then the guest sees it."""
        device = os.open(vfio_device(function), os.O_RDWR | os.O_CLOEXEC)
        machine.qmp("stop")
        machine.qmp("getfd", descriptors=(device,), fdname="hot")
        machine.qmp("device_add", driver="vfio-pci", id="hot", iommufd="shared-iommufd", fd="hot", bus="root-port")
        control.execute("endpoint-add", descriptors=(device,), endpoint=HOT, **keys)
        machine.qmp("cont")
        os.close(device)

    def use(self, machine: PassthroughMachine, seed: int) -> None:
        """DMA of the device that came, through an address space of the guest."""
        guest = machine.guest
        self.wait_until("the device", lambda: any(HOT in line for line in guest.lines("devices")), TIMEOUT)
        guest.find_devices()
        self.attach_vfio(guest, "hot", HOT, "space")
        guest.map("space", FROM, PAGE, "r", seed)
        guest.map("space", TO, PAGE, "w", 0)
        edu = Edu(guest, "hot")
        edu.read(FROM)
        edu.write(TO)
        self.assertEqual(guest.peek("space", TO, 1024), pattern(seed, 1024))
        guest.run("close hot")
        guest.run("ioas-free space")

    def unplug(self, machine: PassthroughMachine) -> None:
        """The guest lets go of the device, and then QEMU."""
        machine.unplug("hot")
        machine.wait_event("DEVICE_DELETED", TIMEOUT)

    def test_device_comes_goes_and_comes_again(self):
        log = KernelLog()
        self.addCleanup(log.close)
        cold, *_, hot = functions(EDU)
        bind(hot)
        machine = self.start_passthrough(f"{cold}={COLD}", options=("--plug-in", BUS), extra=PORT)
        control = self.connect_to(machine)
        machine.guest.load("virtio_iommu")

        # The back-end is told to give it back; not before the guest's driver has let go of its endpoint.
        self.plug(machine, control, hot)
        self.use(machine, 1)
        self.unplug(machine)
        control.execute("endpoint-remove", endpoint=HOT)
        self.assert_free(hot)

        # The back-end hears of it from QEMU.
        self.plug(machine, control, hot, **{"qemu-id": "hot"})
        self.use(machine, 2)
        self.unplug(machine)
        self.wait_until("the end of the endpoint", lambda: len(control.status()["endpoints"]) == 1, TIMEOUT)
        self.assert_free(hot)
        self.assert_clean(control)

        # In good order: SIGTERM to the launcher ends all three.
        machine.process.terminate()
        machine.wait()
        self.assert_free(cold)
        self.assertEqual(log.faults(), [])
