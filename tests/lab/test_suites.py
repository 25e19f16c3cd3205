# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a run consists of: nothing is left out unseen, and nothing is made that no test wants."""

import unittest
from unittest import mock

from kit import functional_classes, nested_classes, shown
from lab_kit import classes, lanes, rotation
from lab_kit.lanes import Job
from lab_kit.suites import SUITES, Options, Suites
from lab_kit.tally import Tally

NOTHING_CHANGED = rotation.Change("0" * 40, frozenset(), "a test")


class SuitesTest(unittest.TestCase):
    """Plans runs; none is run."""

    def plan(self, options: Options, *suites: str) -> list[Job]:
        self.tally = Tally()
        plan = Suites(self.tally, options)
        with shown() as output, mock.patch.object(rotation, "change", return_value=NOTHING_CHANGED):
            jobs = [job for suite in suites or SUITES for job in plan.jobs(suite)]
        self.shown = output.getvalue()
        self.assertEqual(self.tally.failures, [])
        return jobs

    def names(self, jobs: list[Job]) -> set[str]:
        return {job.name for job in jobs}

    def test_everything_has_all_that_a_default_run_leaves_out(self):
        default, everything = self.plan(Options()), self.plan(Options(everything=True))
        self.assertLess(self.names(default), self.names(everything))
        left_out = self.names(everything) - self.names(default)
        found = [*functional_classes(), *nested_classes()]
        rotating = {f"{cls.suite}::{cls.name}" for cls in found if cls.kind in rotation.ROTATING}
        self.assertLessEqual(left_out, {*rotating, "unit::miri"})

    def test_weights_are_of_classes_that_are_there(self):
        names = self.names(self.plan(Options(everything=True), "guest", "nested"))
        self.assertEqual(set(classes.weights()) - names, set())

    def test_kernels_are_begun_first_and_heavy_classes_before_light_ones(self):
        jobs = {job.name: job for job in lanes.closure(self.plan(Options(everything=True)))}
        first = min(jobs.values(), key=lambda job: (job.rank, -job.weight))
        self.assertEqual(first.name, "the version of Linux")
        load, probe = jobs["guest::test_load.LoadTest"], jobs["guest::test_probe.ProbeTest"]
        self.assertGreater(load.weight, probe.weight)

    def test_a_default_run_names_the_slice(self):
        self.plan(Options(), "guest")
        self.assertRegex(self.shown, r"rotation: debug: \d+ of the other \d+ classes by turns: ")
        self.assertRegex(self.shown, r"rotation: arm: \d+ of the other \d+ classes by turns: ")

    def test_every_job_has_a_name_of_its_own_and_waits_for_none_that_waits_for_it(self):
        jobs = lanes.closure(self.plan(Options(everything=True)))
        self.assertEqual(len(jobs), len(self.names(jobs)))
        place = {job: number for number, job in enumerate(jobs)}
        for job in jobs:
            for other in job.needs:
                self.assertLess(place[other], place[job])

    def test_the_debug_kernel_is_the_last_kernel(self):
        jobs = {job.name: job for job in lanes.closure(self.plan(Options(everything=True)))}
        others = {"lab kernel", "patched kernel", "kernel for Arm", "patched kernel for Arm"}
        self.assertLessEqual(others, self.names(jobs["debug kernel"].after))

    def test_one_test_is_run_whatever_its_turn_and_only_what_it_needs_is_made(self):
        for name, without in (
            ("guest::test_pasids.PasidTest", {"debug kernel", "kernel for Arm"}),
            ("guest::test_arm.ArmPasidTest", {"debug kernel", "lab kernel"}),
            ("guest::test_debug_kernel.PasidTest", {"kernel for Arm"}),
        ):
            jobs = self.plan(Options(pattern=name), "guest")
            self.assertEqual(self.names(jobs), {name})
            self.assertFalse(self.names(lanes.closure(jobs)) & without)

    def test_tests_on_the_debug_kernel_wait_for_it_wherever_they_are(self):
        jobs = {job.name: job for job in self.plan(Options(everything=True), "guest")}
        for name in ("guest::test_debug_kernel.PasidTest", "guest::test_allocations.AllocationTest"):
            self.assertIn("debug kernel", self.names(jobs[name].needs))

    def test_nothing_runs_under_a_name_that_no_test_has(self):
        self.assertEqual(self.plan(Options(pattern="no such test"), "checks", "guest", "nested"), [])

    def test_the_suites_of_rust_stand_on_no_kernel_but_the_host_s(self):
        self.assertFalse(any("kernel" in job.name for job in lanes.closure(self.plan(Options(), "checks", "unit"))))
        self.assertIn("lab kernel", self.names(lanes.closure(self.plan(Options(), "host"))))


if __name__ == "__main__":
    unittest.main()
