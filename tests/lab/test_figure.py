# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A row says what was measured, beside what, and whether that is good enough."""

import unittest

import kit  # noqa: F401
from lab_kit import figure


class FigureTest(unittest.TestCase):
    def test_a_goal_is_met_up_to_its_ratio(self):
        self.assertEqual(figure.row("map", 1.0, 2.0, 0.5), "| map | 1.0 us | 2.0 us | 0.50 | <= 0.5 x | met |")
        self.assertEqual(figure.row("map", 1.1, 2.0, 0.5), "| map | 1.1 us | 2.0 us | 0.55 | <= 0.5 x | MISSED |")

    def test_a_row_without_a_goal_has_its_columns_and_names_what_is_beside(self):
        row = figure.row("map", 3.0, 2.0, beside="without")
        self.assertEqual(row, "| map | 3.0 us | without 2.0 us | 1.50 | | |")


if __name__ == "__main__":
    unittest.main()
