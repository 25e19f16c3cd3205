# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The tests find their tools by themselves. If one is missing, they name the command to run. No guest is started."""

import os
import pathlib
import select
import subprocess
import sys
import tempfile
import unittest

from bases.testcase import FunctionalTest
from lab_kit import cache, kernel
from lab_kit.vm import lab

ROOT = pathlib.Path(__file__).resolve().parents[2]


class EmptyCacheTest(unittest.TestCase):
    """A machine on which nothing has been fetched."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="lab-test-")
        self.addCleanup(scratch.cleanup)
        self.cache = pathlib.Path(scratch.name)

    def run_tests(self, *command: str) -> str:
        variables = {name: value for name, value in os.environ.items() if not name.startswith("LAB_")}
        # The back-end is not what is missing, and building it takes its time.
        variables |= {"XDG_CACHE_HOME": str(self.cache), "LAB_BACKEND": "/bin/true", "LAB_INIT": "/bin/true"}
        result = subprocess.run(
            [sys.executable, "-B", *command], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stderr

    def test_tests_are_skipped_and_say_what_to_run(self):
        for test, wanted in (
            ("test_bypass.BypassTest", "fetch"),
            ("test_page_requests.PageRequestTest", "(patched-kernel|fetch)"),
            ("test_load.LoadTest", "fetch"),
        ):
            output = self.run_tests("-m", "unittest", "-v", f"tests.functional.{test}")
            self.assertRegex(output, rf"skipped '.*: run qemu-scripts/lab {wanted}'")
            self.assertRegex(output, r"OK \(skipped=\d+\)")
            self.assertNotIn("... ok", output)

    def test_a_file_runs_by_itself(self):
        output = self.run_tests("tests/functional/test_bypass.py")
        self.assertRegex(output, r"OK \(skipped=\d+\)")

    def test_nothing_is_made(self):
        self.run_tests("-m", "unittest", "tests.functional.test_bypass")
        made = [path.name for path in (self.cache / "vhost-device-iommu").iterdir()]
        self.assertEqual(made, [])


class ClosedCacheTest(unittest.TestCase):
    """Tests find what is in the cache, and never build or fetch anything."""

    def setUp(self) -> None:
        scratch = tempfile.TemporaryDirectory(prefix="lab-test-")
        self.addCleanup(scratch.cleanup)
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = scratch.name
        self.addCleanup(lambda: os.environ.update({"XDG_CACHE_HOME": before}) if before else os.environ.pop("XDG_CACHE_HOME"))

    def test_an_entry_that_is_not_complete_is_missing(self):
        def make(path: pathlib.Path) -> None:
            raise AssertionError("made")

        (cache.directory() / "thing").mkdir()
        with cache.closed(), self.assertRaisesRegex(cache.Missing, "thing is not there"):
            cache.entry("thing", make)
        with self.assertRaisesRegex(AssertionError, "made"):
            cache.entry("thing", make)

    def test_an_entry_that_is_complete_is_found(self):
        made = cache.entry("thing", lambda path: (path / "file").touch())
        with cache.closed():
            self.assertEqual(cache.entry("thing", lambda path: self.fail("made")), made)

    def test_the_newest_linux_with_its_source_is_taken(self):
        self.assertIsNone(kernel.newest_in_cache())
        for version in reversed(kernel.SUPPORTED):
            cache.entry(kernel._source_entry(version), lambda path: None)
            self.assertEqual(kernel.newest_in_cache(), version)

    def test_a_variable_that_names_nothing_says_so(self):
        os.environ["LAB_ODD_BACKEND"] = "/nowhere/program"
        self.addCleanup(os.environ.pop, "LAB_ODD_BACKEND")
        lab.odd_backend.cache_clear()
        with self.assertRaisesRegex(lab.Missing, "LAB_ODD_BACKEND: /nowhere/program does not exist"):
            lab.odd_backend()


class TiedTest(unittest.TestCase):
    """A process that a test has started ends with the test."""

    def test_a_process_ends_when_its_starter_is_killed(self):
        script = "import subprocess; from lab_kit.vm.tied import tied; subprocess.run(tied(['sh', '-c', 'echo; exec sleep 600']))"
        with subprocess.Popen(
            [sys.executable, "-Bc", script], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT / "qemu-scripts")}
        ) as starter:
            assert starter.stdout
            starter.stdout.readline()
            starter.kill()
            # The end of the file: nobody has the other side any more.
            self.assertTrue(select.select([starter.stdout], [], [], 60)[0])
            self.assertEqual(starter.stdout.read(), b"")


if __name__ == "__main__":
    FunctionalTest.main()
