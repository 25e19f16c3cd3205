# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Counts of what libtest says."""

import unittest

from kit import counts, shown
from lab_kit.tally import Libtest, Tally

PASSED = """\
     Running unittests src/lib.rs
running 2 tests
test device::tests::one ... ok
test device::tests::two ... ok

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
"""

FAILED = """\
     Running tests/cli.rs
running 2 tests
test three ... ok
test four ... FAILED

failures:

---- four stdout ----
because of four

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
"""


class LibtestTest(unittest.TestCase):
    def read(self, text: str, status: int = 0, late: str = "") -> str:
        self.tally = Tally()
        libtest = Libtest(self.tally, "unit")
        with shown() as output:
            for line in text.splitlines():
                libtest.line(line)
            libtest.ended("cargo test ends with status 0", status, late)
        return output.getvalue()

    def test_passed_tests_have_a_line_each_and_nothing_else(self):
        output = self.read(PASSED)
        self.assertEqual(counts(self.tally), (2, 0))
        self.assertEqual(output.splitlines(), [f"test unit::device::tests::{name} ... ok" for name in ("one", "two")])

    def test_what_a_failed_test_said_is_shown_and_that_it_failed_is_counted_once(self):
        output = self.read(PASSED + FAILED, status=101)
        self.assertEqual(counts(self.tally), (3, 1))
        self.assertIn("because of four", output)
        self.assertEqual(self.tally.failures, ["unit"])

    def test_a_runner_that_failed_without_a_failed_test_is_a_failure(self):
        output = self.read("error[E0425]: cannot find value", status=101)
        self.assertEqual(counts(self.tally), (0, 1))
        self.assertIn("E0425", output)

    def test_a_test_program_that_dies_is_a_failure(self):
        self.read(PASSED + "running 3 tests\ntest five ... ok\n", status=101)
        self.assertEqual(counts(self.tally), (2, 1))

    def test_a_runner_that_was_late_is_a_failure_whatever_passed(self):
        self.read(PASSED, late="it took more than 9 s")
        self.assertEqual(counts(self.tally), (2, 1))


class TallyTest(unittest.TestCase):
    def test_what_is_missing_is_a_failure_where_the_lab_is_required(self):
        for required in (False, True):
            tally = Tally(required)
            with shown() as output:
                tally.missing("guest", "no kernel")
            self.assertEqual(counts(tally), (0, int(required)))
            self.assertEqual(output.getvalue(), "guest: NOT RUN: no kernel\n")

    def test_a_failed_test_s_words_are_in_one_piece_after_its_line(self):
        tally = Tally()
        with shown() as output:
            tally.test("a", False, "3 s", ["one", "two"])
            tally.test("b", True, block=["three"])
        lines = ["test a ... FAILED: 3 s", "---- a", "one", "two", "---- end of a", "test b ... ok"]
        self.assertEqual(output.getvalue().splitlines(), lines)
        self.assertEqual(counts(tally), (1, 1))


if __name__ == "__main__":
    unittest.main()
