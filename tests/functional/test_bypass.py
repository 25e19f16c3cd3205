# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Bypass: identity for endpoints that no domain holds, and for those in a bypass domain."""

from bases.testcase import UNKNOWN_TO_GUEST, FunctionalTest
from lab_kit.vm.control import endpoint_id
from lab_kit.vm.machine import ENDPOINTS

# The kernel's text: known to QEMU too, and it does not change (the guests run with nokaslr).
TEXT = 0x100_0000
LENGTH = 4096


class BypassTest(FunctionalTest):
    """The stock driver, with `--boot-bypass on` and `off`."""

    def test_before_the_driver_no_endpoint_reaches_memory_with_bypass_off(self):
        backend = self.start_backend("--boot-bypass", "off")
        self.start_machine(backend)
        for function in ENDPOINTS:
            self.assertEqual(backend.control.endpoint(function)["state"], "blocked")
            self.assert_refused("TranslationFault", backend.control.dma_read, function, TEXT, LENGTH)

    def test_before_the_driver_endpoints_are_in_bypass_with_bypass_on(self):
        # QEMU announces the guest's memory when the driver starts: there is none to reach before.
        backend = self.start_backend("--boot-bypass", "on")
        self.start_machine(backend)
        self.assertEqual(backend.control.status()["memory"], [])
        for function in ENDPOINTS:
            self.assertEqual(backend.control.endpoint(function)["state"], "bypass")
            self.assert_refused("TranslationFault", backend.control.dma_read, function, TEXT, LENGTH)

    def test_unattached_endpoint_reads_guest_memory_with_bypass_on(self):
        machine, _, control = self.start("--boot-bypass", "on")
        self.assertEqual(control.endpoint(UNKNOWN_TO_GUEST)["state"], "bypass")
        expected = machine.read_physical(TEXT, LENGTH)
        self.assertNotEqual(expected.strip(b"\0"), b"")
        self.assertEqual(control.dma_read(UNKNOWN_TO_GUEST, TEXT, LENGTH), expected)

    def test_unattached_endpoint_is_blocked_with_bypass_off(self):
        _, guest, control = self.start("--boot-bypass", "off")
        self.assertEqual(control.endpoint(UNKNOWN_TO_GUEST)["state"], "blocked")
        guest.mark_log()
        self.assert_refused("TranslationFault", control.dma_read, UNKNOWN_TO_GUEST, TEXT, LENGTH)
        guest.wait_log(f"domain fault from EP {endpoint_id(UNKNOWN_TO_GUEST)} at {TEXT:#x} [R]")

    def test_attached_endpoints_are_translated_whatever_bypass_says(self):
        _, guest, control = self.start("--boot-bypass", "on")
        guest.mark_log()
        self.assert_refused("TranslationFault", control.dma_read, ENDPOINTS[0], TEXT, LENGTH)
        guest.wait_log(f"page fault from EP {endpoint_id(ENDPOINTS[0])} at {TEXT:#x} [R]")

    def test_passthrough_makes_bypass_domains(self):
        machine, guest, control = self.start("--boot-bypass", "off", command_line="iommu.passthrough=1")
        for function in ENDPOINTS:
            self.assertEqual(guest.group_types()[function], "identity")
            self.assertEqual(control.domain(function)["kind"], "bypass")
            self.assertEqual(control.dma_read(function, TEXT, LENGTH), machine.read_physical(TEXT, LENGTH))
        self.assert_clean(control)


if __name__ == "__main__":
    FunctionalTest.main()
