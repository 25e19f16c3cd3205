# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What of a kernel's log is trouble, and which trouble is not the product's."""

import unittest

import kit  # noqa: F401
from lab_kit import trouble

START = "[    0.000000] Linux version 7.3.4-lab\n[    0.000000] Kernel command line: iommufd.allow_unsafe_interrupts=1\n"
EARLY = START + "[    4.964000] Oops: Oops: 0000 [#1] SMP\n[    4.964000] Kernel panic - not syncing: in interrupt\n"
GOOD = START + "[    3.1] pcieport 0000:00:08.0: enabled\n"
LATE = GOOD + "[    5.0] Kernel panic - not syncing: in interrupt\n"


class TroubleTest(unittest.TestCase):
    def test_a_kernel_that_gave_up_before_its_devices_is_left_out_once(self):
        self.assertEqual(trouble.without_early_panic(EARLY + GOOD), GOOD)
        self.assertTrue(trouble.lines(trouble.without_early_panic(EARLY + EARLY + GOOD)))

    def test_a_kernel_that_none_followed_is_trouble(self):
        self.assertTrue(trouble.lines(trouble.without_early_panic(EARLY)))

    def test_a_kernel_that_came_to_its_devices_is_trouble(self):
        self.assertTrue(trouble.lines(trouble.without_early_panic(LATE + GOOD)))

    def test_a_later_boot_is_trouble(self):
        self.assertTrue(trouble.lines(trouble.without_early_panic(GOOD + EARLY + GOOD)))

    def test_a_log_without_trouble_stays_as_it_is(self):
        self.assertEqual(trouble.without_early_panic(GOOD + GOOD), GOOD + GOOD)
        self.assertEqual(trouble.lines(GOOD), [])


if __name__ == "__main__":
    unittest.main()
