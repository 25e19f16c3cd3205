# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Drivers, guests and QEMU come and go; the back-end stays.

Not tested: if the back-end ends while the driver runs, the guest's driver waits forever (README).
"""

import os
import re

from bases.testcase import FunctionalTest
from lab_kit.vm import lab
from lab_kit.vm.control import Control
from lab_kit.vm.disk import MIB, PARTS, Disk
from lab_kit.vm.guest import TIMEOUT, Guest, pattern
from lab_kit.vm.machine import ENDPOINTS

FIRST = ENDPOINTS[0]
IOVA = 0x100_0000
LENGTH = 0x4000
DRIVER = "/sys/bus/virtio/drivers/virtio_iommu"


class LifecycleTest(FunctionalTest):
    """The driver's ends, reboots of the guest, and front-ends one after the other."""

    def check_translation(self, guest: Guest, control: Control, seed: int) -> None:
        """A buffer of the first endpoint is mapped and read; all is undone."""
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, LENGTH, "rw", seed)
        self.assertEqual(control.dma_read(FIRST, IOVA, LENGTH), pattern(seed, LENGTH))
        guest.unmap("space", IOVA, LENGTH)
        guest.run("detach dev")
        guest.run("close dev")
        guest.run("ioas-free space")
        guest.run(f"unbind {FIRST}")

    def unbind_driver(self, guest: Guest) -> str:
        """Takes the device from its driver; returns its name. The endpoints leave the bus before, as stock Linux 7.2
        wants it behind any virtio-iommu (patch 0001 of guest/linux)."""
        for function in ENDPOINTS:
            guest.run(f"write /sys/bus/pci/devices/0000:{function}/remove 1")
        device = next(name for name in guest.lines(f"ls {DRIVER}") if name.startswith("virtio"))
        guest.run(f"write {DRIVER}/unbind {device}")
        return device

    def bind_driver(self, guest: Guest, device: str) -> None:
        guest.run(f"write {DRIVER}/bind {device}")
        guest.find_devices()

    def assert_nothing_left(self, control: Control) -> None:
        """No attachment, no domain: as after a reset."""
        status = control.status()
        self.assertEqual(status["domains"], [])
        self.assertEqual({endpoint["domain"] for endpoint in status["endpoints"]}, {None})

    def test_driver_is_unbound_and_bound_again(self):
        _, guest, control = self.start()
        self.check_translation(guest, control, 1)
        resets = control.counters()["resets"]
        device = self.unbind_driver(guest)
        self.assertEqual(guest.group_types(), {})
        self.bind_driver(guest, device)
        self.assertEqual(set(guest.group_types()), set(ENDPOINTS))
        self.assertGreater(control.counters()["resets"], resets)
        self.check_translation(guest, control, 2)
        self.assert_clean(control)

    def test_driver_is_unbound_and_bound_many_times(self):
        _, guest, control = self.start()
        for _ in range(10):
            self.bind_driver(guest, self.unbind_driver(guest))
        self.check_translation(guest, control, 3)
        self.assertEqual(control.counters()["connections"], 1)
        self.assert_clean(control)

    def test_warm_reboot(self):
        _, guest, control = self.start()
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, LENGTH, "rw", 1)
        guest.reboot()
        guest.load("virtio_iommu")
        self.assertEqual(set(guest.group_types()), set(ENDPOINTS))
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.check_translation(guest, control, 2)
        self.assertEqual(control.counters()["connections"], 1)
        self.assert_clean(control)

    def test_reset_without_the_guest_s_help(self):
        machine, guest, control = self.start()
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, LENGTH, "rw", 1)
        machine.qmp("system_reset")
        guest.wait_ready()
        guest.load("virtio_iommu")
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA, 16)
        self.check_translation(guest, control, 2)
        self.assert_clean(control)

    def test_pause_and_resume_keep_attachments_and_mappings(self):
        machine, guest, control = self.start()
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, LENGTH, "rw", 1)
        before, resets = control.status(), control.counters()["resets"]
        for _ in range(3):
            machine.qmp("stop")
            self.assertEqual(control.dma_read(FIRST, IOVA, LENGTH), pattern(1, LENGTH))
            machine.qmp("cont")
            # The next request proves that the queue runs again.
            guest.map("space", IOVA + LENGTH, LENGTH, "rw", 2)
            self.assertEqual(control.dma_read(FIRST, IOVA + LENGTH, LENGTH), pattern(2, LENGTH))
            guest.unmap("space", IOVA + LENGTH, LENGTH)
        self.assertEqual(control.status()["endpoints"], before["endpoints"])
        self.assertEqual(control.status()["domains"], before["domains"])
        self.assertEqual(control.counters()["resets"], resets)
        self.assert_clean(control)

    def test_fault_while_paused_is_reported_after_resume(self):
        machine, guest, control = self.start()
        self.attach_vfio(guest, "dev", FIRST, "space")
        guest.map("space", IOVA, LENGTH, "rw", 1)
        guest.mark_log()
        machine.qmp("stop")
        self.assert_refused("TranslationFault", control.dma_read, FIRST, IOVA + LENGTH, 16)
        machine.qmp("cont")
        guest.wait_log(f"fault from EP 40 at {IOVA + LENGTH:#x} [R]")

    def test_pause_before_the_driver_is_harmless(self):
        backend = self.start_backend()
        machine = self.start_machine(backend)
        machine.qmp("stop")
        machine.qmp("cont")
        machine.guest.load("virtio_iommu")
        self.check_translation(machine.guest, backend.control, 1)
        self.assert_clean(backend.control)

    def test_qemu_killed_and_started_again(self):
        backend = self.start_backend("--boot-bypass", "off")
        control = backend.control
        for connection in (1, 2, 3):
            machine = self.start_machine(backend)
            machine.guest.load("virtio_iommu")
            self.check_translation(machine.guest, control, connection)
            self.attach_vfio(machine.guest, "dev", FIRST, "space")
            machine.guest.map("space", IOVA, LENGTH, "rw", 1)
            self.assertEqual(control.counters()["connections"], connection)
            machine.kill()
            self.wait_until("disconnected", lambda: not control.status()["connected"])
            self.assert_nothing_left(control)
            self.assertEqual(control.status()["memory"], [])
            self.assertEqual(control.endpoint(FIRST)["state"], "blocked")
        self.assert_clean(control)

    def test_poweroff_ends_qemu_and_not_the_back_end(self):
        backend = self.start_backend()
        machine = self.start_machine(backend)
        machine.guest.load("virtio_iommu")
        machine.guest.run("poweroff")
        self.assertEqual(machine.wait(), 0)
        self.wait_until("disconnected", lambda: not backend.control.status()["connected"])
        self.assert_nothing_left(backend.control)
        self.assertIsNone(backend.process.poll())

    def test_sigterm_ends_the_back_end_at_once(self):
        backend = self.start_backend()
        machine = self.start_machine(backend)
        machine.guest.load("virtio_iommu")
        machine.kill()
        self.assertEqual(backend.stop(), 0)
        self.assertFalse(backend.socket.exists(), "the socket file is left behind")

    def test_back_end_s_log_is_quiet(self):
        machine, guest, control = self.start()
        self.check_translation(guest, control, 1)
        guest.run("poweroff")
        machine.wait()
        log = (self.directory / "backend.log").read_text()
        self.assertIsNone(re.search("panicked|ERROR", log), log)


class PatchedDriverShutdownTest(FunctionalTest):
    """QEMU's own virtio-iommu stands in for ours, which cannot translate the DMA of QEMU's devices."""

    kernel = staticmethod(lab.patched_kernel)

    def test_reboot_right_after_a_disk_was_used(self):
        # The patches 0014 and 0021 of guest/linux shut the disk down before the IOMMU, and send no request afterwards.
        image = self.directory / "disk"
        image.touch()
        os.truncate(image, PARTS * MIB)
        extra = ("-drive", f"file={image},format=raw,if=none,id=disk", "-device", "nvme,drive=disk,serial=disk,addr=07.0")
        guest = self.start_machine(None, extra=extra).guest
        disk = Disk(guest)
        guest.load("virtio_iommu")
        for _ in range(3):
            guest.load("nvme")
            self.wait_until("the disk", disk.is_there, TIMEOUT)
            disk.use()
            guest.run("reboot")
            guest.wait_ready()
            guest.load("virtio_iommu")


if __name__ == "__main__":
    FunctionalTest.main()
