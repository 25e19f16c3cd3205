# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The back-end acts on QEMU's events over QMP: resets of the machine, and unplugged devices."""

import contextlib
import pathlib
import select
import socket
import threading

from bases.testcase import FunctionalTest
from lab_kit.vm.backend import Backend
from lab_kit.vm.guest import pattern
from lab_kit.vm.machine import ENDPOINTS, Machine

FIRST = ENDPOINTS[0]
IOVA = 0x100_0000
LENGTH = 0x4000
# Behind a port that devices come and go at, in the way of PCI Express: the lab's kernel does not know ACPI's.
NATIVE = "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"
PORT = "pcie-root-port,id=port0,addr=07.0,chassis=1"
PLUGGED = "01:00.0"
DEVICE = "plug0"
# What the back-end writes at the end of a driver.
ENDED = "QMP: the driver has ended"


class Relay:
    """Passes a client on to a monitor of QEMU, and can be cut."""

    def __init__(self, path: pathlib.Path, monitor: pathlib.Path):
        self.path, self._monitor = path, monitor
        self.mend()

    def mend(self) -> None:
        self.path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(self.path))
        server.listen()
        self._alive, alive = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, args=(server, alive))
        self._thread.start()

    def cut(self) -> None:
        self._alive.close()
        self._thread.join()

    def _serve(self, server: socket.socket, alive: socket.socket) -> None:
        """Until the other end of `alive` is closed."""
        with server, alive:
            while alive not in select.select([server, alive], [], [])[0]:
                client, _ = server.accept()
                with client, socket.socket(socket.AF_UNIX) as monitor, contextlib.suppress(OSError):
                    monitor.connect(str(self._monitor))
                    self._pass_on(client, monitor, alive)

    @staticmethod
    def _pass_on(client: socket.socket, monitor: socket.socket, alive: socket.socket) -> None:
        while True:
            ready = select.select([client, monitor, alive], [], [])[0]
            if alive in ready:
                return
            for source, target in ((client, monitor), (monitor, client)):
                if source in ready:
                    data = source.recv(4096)
                    if not data:
                        return
                    target.sendall(data)


class QmpTest(FunctionalTest):
    """`--qmp` with a QEMU that resets, pauses, unplugs and ends."""

    def start_with_qmp(
        self, *options: str, through: pathlib.Path | None = None, next_kernels: int = 0
    ) -> tuple[Machine, Backend]:
        """A back-end that listens to its QEMU, if need be through another socket, and the driver loaded."""
        monitor = self.directory / "qmp.sock"
        endpoints = (*ENDPOINTS, f"{PLUGGED},qemu-id={DEVICE}")
        backend = self.start_backend("--qmp", str(through or monitor), *options, endpoints=endpoints)
        extra = (
            "-qmp", f"unix:{monitor},server=on,wait=off",
            "-global", NATIVE, "-device", PORT, "-device", f"edu,bus=port0,id={DEVICE}",
        )  # fmt: skip
        machine = self.start_machine(backend, extra=extra, next_kernels=next_kernels)
        self.wait_until("connected to QMP", lambda: "QMP: connected to QEMU" in backend.log.read_text())
        machine.guest.load("virtio_iommu")
        return machine, backend

    def map_buffer(self, machine: Machine) -> None:
        self.attach_vfio(machine.guest, "dev", FIRST, "space")
        machine.guest.map("space", IOVA, LENGTH, "rw", 1)

    def assert_as_at_start(self, backend: Backend) -> None:
        self.wait_until("bypass", lambda: backend.control.endpoint(FIRST)["state"] == "bypass")
        self.assertEqual(backend.control.status()["domains"], [])

    def test_endpoints_are_in_bypass_between_a_reset_and_the_next_driver(self):
        machine, backend = self.start_with_qmp()
        self.map_buffer(machine)
        machine.qmp("system_reset")
        self.assert_as_at_start(backend)
        machine.guest.wait_ready()
        # The driver is not there yet: a boot loader's device reaches all memory.
        self.assertEqual(backend.control.endpoint(FIRST)["state"], "bypass")
        resets = backend.control.counters()["resets"]
        machine.guest.load("virtio_iommu")
        self.assertEqual(backend.control.counters()["resets"], resets, "the reset was taken for a second one")
        self.map_buffer(machine)
        self.assertEqual(backend.control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
        self.assert_clean(backend.control)

    def test_a_pause_is_none(self):
        machine, backend = self.start_with_qmp()
        self.map_buffer(machine)
        resets = backend.control.counters()["resets"]
        for _ in range(30):
            machine.qmp("stop")
            machine.qmp("cont")
            machine.guest.map("space", IOVA + LENGTH, LENGTH, "rw", 2)
            self.assertEqual(backend.control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
            machine.guest.unmap("space", IOVA + LENGTH, LENGTH)
        self.assertEqual(backend.control.counters()["resets"], resets)
        self.assert_clean(backend.control)

    def test_a_reset_during_a_pause_is_one(self):
        machine, backend = self.start_with_qmp()
        self.map_buffer(machine)
        machine.qmp("stop")
        machine.qmp("system_reset")
        self.assert_as_at_start(backend)
        machine.qmp("cont")
        machine.guest.wait_ready()
        machine.guest.load("virtio_iommu")
        self.map_buffer(machine)
        self.assertEqual(backend.control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
        self.assert_clean(backend.control)

    def test_an_unplugged_device_takes_its_endpoint_along_and_can_come_back(self):
        machine, backend = self.start_with_qmp()
        control = backend.control

        def known() -> int:
            return len(control.status()["endpoints"])

        self.assertEqual(known(), 3)
        machine.unplug(DEVICE)
        # The guest takes its time: it lets a button's press be taken back for five seconds.
        self.wait_until("the endpoint is gone", lambda: known() == 2, timeout=60)
        control.execute("endpoint-add", endpoint=PLUGGED, **{"qemu-id": DEVICE})
        machine.qmp("device_add", driver="edu", bus="port0", id=DEVICE)
        plugged = f"0000:{PLUGGED}"
        self.wait_until("plugged", lambda: plugged in machine.guest.lines("ls /sys/bus/pci/devices"), timeout=60)
        self.assertEqual(known(), 3)
        machine.unplug(DEVICE)
        self.wait_until("the endpoint is gone again", lambda: known() == 2, timeout=60)
        self.assert_clean(control)

    def test_the_end_of_a_driver_is_told_from_a_pause(self):
        machine, backend = self.start_with_qmp(next_kernels=1)
        self.map_buffer(machine)
        resets = backend.control.counters()["resets"]
        machine.load_next("kexec", self.command_line)
        machine.go_on("kexec")
        self.wait_until("the end is told", lambda: ENDED in backend.log.read_text())
        # Devices may be shut down after their IOMMU. What the next kernel has made of the buffer is its own business.
        self.assertEqual(len(backend.control.dma_read(FIRST, IOVA, LENGTH)), LENGTH)
        machine.guest.load("virtio_iommu")
        self.assertEqual(backend.control.counters()["resets"], resets + 1)
        self.map_buffer(machine)
        self.assertEqual(backend.control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
        self.assert_clean(backend.control)

    def test_a_reset_that_was_not_heard_of_is_found_as_the_end_of_a_driver(self):
        relay = Relay(self.directory / "relay.sock", self.directory / "qmp.sock")
        self.addCleanup(relay.cut)
        machine, backend = self.start_with_qmp(through=relay.path)
        self.map_buffer(machine)
        relay.cut()
        self.wait_until("the loss is told", lambda: "distinguishes a reset from a pause" in backend.log.read_text())
        machine.qmp("system_reset")
        machine.guest.wait_ready()
        resets = backend.control.counters()["resets"]
        self.assertEqual(backend.control.endpoint(FIRST)["state"], "attached")
        relay.mend()
        self.wait_until("the end is told", lambda: ENDED in backend.log.read_text())
        machine.guest.load("virtio_iommu")
        self.map_buffer(machine)
        self.assertEqual(backend.control.counters()["resets"], resets + 1)
        self.assertEqual(backend.control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
        # The next one is heard of.
        machine.qmp("system_reset")
        self.assert_as_at_start(backend)

    def test_a_pause_that_was_not_heard_of_is_none(self):
        relay = Relay(self.directory / "relay.sock", self.directory / "qmp.sock")
        self.addCleanup(relay.cut)
        machine, backend = self.start_with_qmp(through=relay.path)
        self.map_buffer(machine)
        resets = backend.control.counters()["resets"]
        relay.cut()
        machine.qmp("stop")
        relay.mend()
        self.wait_until("its state", lambda: "state is paused" in backend.log.read_text())
        machine.qmp("cont")
        machine.guest.map("space", IOVA + LENGTH, LENGTH, "rw", 2)
        self.assertEqual(backend.control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
        self.assertEqual(backend.control.counters()["resets"], resets)
        self.assert_clean(backend.control)

    def test_the_end_of_qemu_is_survived(self):
        machine, backend = self.start_with_qmp()
        machine.kill()
        self.wait_until("disconnected", lambda: not backend.control.status()["connected"])
        self.wait_until("the loss is told", lambda: "distinguishes a reset from a pause" in backend.log.read_text())
        self.assertEqual(backend.stop(), 0)


if __name__ == "__main__":
    FunctionalTest.main()
