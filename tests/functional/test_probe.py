# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The stock driver finds the device, and reads its properties correctly."""

from bases.testcase import UNKNOWN_TO_GUEST, FunctionalTest
from lab_kit.vm.control import endpoint_id
from lab_kit.vm.machine import ENDPOINTS

# Where the driver puts its MSI window when the device names none.
DRIVERS_MSI_WINDOW = (0x800_0000, 0x80F_FFFF, "msi")


class ProbeTest(FunctionalTest):
    """Groups, reserved regions, ranges and page sizes, from the guest's sysfs."""

    def test_endpoints_of_the_viot_are_in_translated_groups(self):
        _, guest, control = self.start()
        types = guest.group_types()
        self.assertEqual({function for function in types if function in ENDPOINTS}, set(ENDPOINTS))
        self.assertNotIn("00:04.0", types)
        for function in ENDPOINTS:
            self.assertTrue(types[function].startswith("DMA"), types)
            self.assertEqual(control.endpoint(function)["state"], "attached")
        self.assertNotEqual(control.endpoint(ENDPOINTS[0])["domain"], control.endpoint(ENDPOINTS[1])["domain"])
        self.assert_clean(control)

    def test_functions_outside_of_the_viot_have_no_group(self):
        _, guest, _ = self.start()
        self.assertEqual(set(guest.group_types()), set(ENDPOINTS))

    def test_driver_probes_every_endpoint_once(self):
        _, _, control = self.start()
        counters = control.counters()
        self.assertEqual(counters["probe"], len(ENDPOINTS))
        self.assertEqual(counters["requests_failed"], 0)

    def test_driver_accepts_the_features_it_knows(self):
        _, _, control = self.start()
        features = {name.upper().removeprefix("VIRTIO_IOMMU_F_") for name in control.status()["features"]}
        self.assertLessEqual({"INPUT_RANGE", "DOMAIN_RANGE", "MAP_UNMAP", "PROBE", "BYPASS_CONFIG"}, features)
        self.assertNotIn("BYPASS", features)

    def test_status_lists_endpoints_and_guest_memory(self):
        _, _, control = self.start()
        status = control.status()
        self.assertTrue(status["connected"])
        self.assertEqual(
            [endpoint["id"] for endpoint in status["endpoints"]],
            sorted(map(endpoint_id, (*ENDPOINTS, UNKNOWN_TO_GUEST))),
        )
        self.assertGreaterEqual(sum(region["length"] for region in status["memory"]), 512 << 20)

    def test_without_reserved_regions_the_driver_reserves_its_msi_window(self):
        _, guest, _ = self.start()
        for function in ENDPOINTS:
            self.assertEqual(guest.reserved(function), {DRIVERS_MSI_WINDOW})

    def test_reserved_regions_of_the_command_line_reach_the_guest(self):
        _, guest, control = self.start(
            "--reserved-region", "0x20000000:0x2fffffff:0", "--reserved-region", "0xfee00000:0xfeefffff:1"
        )
        for function in ENDPOINTS:
            self.assertEqual(
                guest.reserved(function),
                {(0x2000_0000, 0x2FFF_FFFF, "reserved"), (0xFEE0_0000, 0xFEEF_FFFF, "msi")},
            )
        self.assert_clean(control)

    def test_reserved_regions_are_holes_for_vfio__v60(self):
        _, guest, _ = self.start("--reserved-region", "0x20000000:0x2fffffff:0")
        self.attach_vfio(guest, "dev", ENDPOINTS[0], "space")
        ranges = [tuple(int(word, 16) for word in line.split()) for line in guest.lines("ranges space")]
        for start, last in ranges:
            self.assertFalse(start <= 0x2FFF_FFFF and last >= 0x2000_0000, ranges)

    def test_input_range_bounds_what_vfio_may_map(self):
        _, guest, _ = self.start("--input-range", "0:0xffffffffff")
        self.attach_vfio(guest, "dev", ENDPOINTS[0], "space")
        last = max(int(line.split()[1], 16) for line in guest.lines("ranges space"))
        self.assertEqual(last, 0xFF_FFFF_FFFF)

    def test_page_sizes_of_the_command_line_reach_the_guest(self):
        _, guest, _ = self.start("--page-size-mask", "0x40201000")
        self.assertEqual(len(guest.lines("log page mask: 0x40201000")), 1)


if __name__ == "__main__":
    FunctionalTest.main()
