# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A class of tests in a process of its own: how its tests are counted, whatever becomes of the process."""

import contextlib
import os
import pathlib
import select
import tempfile
import textwrap
import unittest

from kit import SCRIPTS, counts, shown
from lab_kit import classes, processes
from lab_kit.tally import Tally

# Nothing here takes long; what hangs is ended after so many seconds.
DEADLINE = 60.0

MODULE = """
import os, signal, sys, time, unittest

class Good(unittest.TestCase):
    def test_a(self): print("noise without an end", end="")
    def test_b(self): pass

class Bad(unittest.TestCase):
    def test_a(self): self.fail("because of a")
    def test_b(self): raise RuntimeError("because of b")
    def test_c(self): self.skipTest("no c here")
    def test_d(self): pass
    @unittest.expectedFailure
    def test_e(self): pass

class NoSetUp(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise RuntimeError("no boot")
    def test_a(self): pass
    def test_b(self): pass

class NotHere(unittest.TestCase):
    @classmethod
    def setUpClass(cls): raise unittest.SkipTest("no kernel")
    def test_a(self): pass
    def test_b(self): pass

class NoTearDown(unittest.TestCase):
    @classmethod
    def tearDownClass(cls): raise RuntimeError("trouble at the end")
    def test_a(self): pass

class Dies(unittest.TestCase):
    def test_a(self): pass
    def test_b(self):
        open(os.path.join(os.environ["TMPDIR"], "guest.log"), "w").write("the guest's last words")
        print("about to die", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    def test_c(self): pass

class Leaves(unittest.TestCase):
    def test_a(self): os._exit(0)

class Hangs(unittest.TestCase):
    def test_a(self):
        self.wait_for_what_never_comes()
    def wait_for_what_never_comes(self):
        signal.pause()

class Late(unittest.TestCase):
    def test_a(self):
        child = os.fork()
        if child:
            with open(os.environ["CHILD"], "w") as file:
                file.write(str(child))
        signal.pause()
"""


class WorkerTest(unittest.TestCase):
    """Runs classes of the module above."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = pathlib.Path(directory.name)
        (self.directory / "test_them.py").write_text(textwrap.dedent(MODULE))
        self.environment = {**os.environ, "PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}

    def run_class(self, name: str, required: bool = True, **limits: float) -> tuple[tuple[int, int], str]:
        """Runs a class: tests that passed and failed, and what was shown."""
        (cls,) = (cls for cls in self.find() if cls.name == f"test_them.{name}")
        tally = Tally(required)
        limits = {"deadline": DEADLINE, "silence": DEADLINE, **limits}
        with shown() as output:
            classes.run(tally, cls, self.directory, self.environment, **limits)
        return counts(tally), output.getvalue()

    def run_until_it_runs(self, name: str, limit: str) -> tuple[tuple[int, int], str]:
        """Runs a class under a limit that gives it the time to begin, however busy this machine is."""
        for seconds in (1.0, 4.0, 16.0, 64.0):
            count, output = self.run_class(name, **{limit: seconds})
            if "it was running" in output:
                break
        return count, output

    def find(self) -> list[classes.TestClass]:
        return classes.find("guest", self.directory, self.environment)

    def test_passed_tests_are_counted_with_a_line_each(self):
        count, output = self.run_class("Good")
        self.assertEqual(count, (2, 0))
        self.assertRegex(output, r"(?m)^test guest::test_them.Good.test_a \.\.\. ok: [\d.]+ s$")
        self.assertNotIn("noise", output)

    def test_failures_errors_and_unexpected_passes_are_failures_with_their_reasons(self):
        count, output = self.run_class("Bad")
        self.assertEqual(count, (1, 4))
        for words in ("because of a", "because of b", "no c here", "expected to fail"):
            self.assertIn(words, output)

    def test_skipped_tests_are_failures_where_the_lab_is_required_and_never_passed(self):
        self.assertEqual(self.run_class("NotHere")[0], (0, 2))
        count, output = self.run_class("NotHere", required=False)
        self.assertEqual(count, (0, 0))
        self.assertEqual(output.count("NOT RUN: no kernel"), 2)

    def test_tests_whose_class_could_not_be_set_up_have_all_failed(self):
        count, output = self.run_class("NoSetUp")
        self.assertEqual(count, (0, 2))
        self.assertIn("no boot", output)

    def test_trouble_at_the_end_of_a_class_is_a_failure(self):
        count, output = self.run_class("NoTearDown")
        self.assertEqual(count, (1, 1))
        self.assertIn("trouble at the end", output)

    def test_a_worker_that_dies_fails_the_test_that_ran_and_those_that_did_not(self):
        count, output = self.run_class("Dies")
        self.assertEqual(count, (1, 2))
        self.assertIn("test_b ... FAILED: it was running: its process ended with status -9", output)
        self.assertIn("test_c ... FAILED: it has no result", output)
        self.assertIn("about to die", output)
        self.assertIn("the guest's last words", output)

    def test_a_worker_that_ends_early_in_good_order_has_failed_too(self):
        self.assertEqual(self.run_class("Leaves")[0], (0, 1))

    def test_a_worker_that_hangs_is_ended_and_says_where_it_stood(self):
        count, output = self.run_until_it_runs("Hangs", "silence")
        self.assertEqual(count, (0, 1))
        self.assertRegex(output, "it was running: it said nothing for [0-9]+ s")
        self.assertIn("wait_for_what_never_comes", output)

    def test_what_a_worker_has_started_ends_with_it(self):
        child = self.directory / "child"
        self.environment["CHILD"] = str(child)
        count, output = self.run_until_it_runs("Late", "deadline")
        self.assertEqual(count, (0, 1))
        self.assertRegex(output, "it was running: it took more than [0-9]+ s")
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(int(child.read_text()))
            self.addCleanup(os.close, process)
            self.assertTrue(select.select([process], [], [], DEADLINE)[0], "it goes on")

    def test_a_test_that_was_not_to_run_is_a_failure(self):
        (cls,) = (cls for cls in self.find() if cls.name == "test_them.Good")
        tally = Tally()
        run = classes.Run(tally, cls)
        with shown():
            run.line('@lab {"test": "test_them.Good.test_z", "outcome": "ok", "text": "", "seconds": 1}')
            run.ended(processes.Ended(0), list)
        self.assertEqual(counts(tally), (0, 3))

    def test_a_module_that_cannot_be_imported_is_said(self):
        (self.directory / "test_broken.py").write_text("import no_such_module\n")
        with self.assertRaises(classes.Unloadable) as caught:
            self.find()
        self.assertIn("no_such_module", "\n".join(caught.exception.lines))

    def test_tests_are_chosen_by_name(self):
        found = classes.matching(self.find(), "them.G*test_b")
        self.assertEqual([cls.tests for cls in found], [("test_them.Good.test_b",)])
        self.assertEqual(classes.matching(self.find(), "test_nothing"), [])


if __name__ == "__main__":
    unittest.main()
