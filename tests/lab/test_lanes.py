# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Jobs in lanes: their order, what they wait for, and that nothing that was to run is forgotten."""

import sys
import threading
import unittest
from unittest import mock

from kit import counts, shown
from lab_kit import lanes, processes
from lab_kit.cache import Missing, OutOfReach
from lab_kit.cargo import BuildFailed
from lab_kit.lanes import Job
from lab_kit.tally import Tally

DEADLINE = 60.0


class LanesTest(unittest.TestCase):
    def setUp(self) -> None:
        self.order: list[str] = []
        # Whether runs were ended is a fact of the whole process.
        patch = mock.patch.object(processes, "_stopped", threading.Event())
        patch.start()
        self.addCleanup(patch.stop)

    def job(self, name: str, **more) -> Job:
        return Job(name, lambda: self.order.append(name), **more)

    def fails(self, error: Exception):
        def run() -> None:
            raise error

        return run

    def run_jobs(
        self, jobs: list[Job], count: int = 1, required: bool = True, deadline: float = DEADLINE, box: float = DEADLINE
    ) -> str:
        self.tally = Tally(required)
        with shown() as output:
            lanes.Lanes(self.tally, count, deadline, box).run(jobs)
        return output.getvalue()

    def test_jobs_are_taken_up_by_rank_and_the_heaviest_first(self):
        jobs = [self.job("c"), self.job("b", weight=5.0), self.job("d"), self.job("a", rank=-1)]
        self.run_jobs(jobs)
        self.assertEqual(self.order, ["a", "b", "c", "d"])

    def test_turns_come_before_weights(self):
        self.run_jobs([self.job("b", turn=2, weight=9.0), self.job("a", turn=1), self.job("c", turn=2)])
        self.assertEqual(self.order, ["a", "b", "c"])

    def test_a_spare_job_that_would_end_too_late_is_left_out_and_named(self):
        heavy = self.job("heavy", weight=DEADLINE + 1, spare=True)
        output = self.run_jobs([heavy, self.job("light", spare=True), self.job("must", weight=DEADLINE + 1)])
        self.assertEqual(self.order, ["must", "light"])
        self.assertIn("left out, as the time was up: heavy\n", output)
        # It has neither passed nor failed.
        self.assertEqual(counts(self.tally), (0, 0))
        self.assertNotIn("light", output)

    def test_the_time_that_others_took_is_gone(self):
        # The second is left out whatever the first took, as it is longer than nothing.
        output = self.run_jobs([self.job("must"), self.job("spare", rank=1, spare=True)], box=0.0)
        self.assertEqual(self.order, ["must"])
        self.assertIn("left out, as the time was up: spare\n", output)

    def test_what_only_spare_jobs_need_is_as_spare_as_they_are(self):
        kernel, base = self.job("kernel", weight=DEADLINE + 1), self.job("base", weight=DEADLINE + 1)
        spare = self.job("spare", needs=(kernel, base), spare=True)
        output = self.run_jobs([spare, self.job("must", needs=(base,))])
        self.assertEqual(self.order, ["base", "must"])
        self.assertIn("left out, as the time was up: kernel, spare\n", output)

    def test_what_is_out_of_reach_leaves_spare_jobs_out_and_fails_others(self):
        compiler = Job("compiler", self.fails(OutOfReach("there is none")))
        output = self.run_jobs([self.job("spare", needs=(compiler,), spare=True), self.job("must")])
        self.assertEqual(self.order, ["must"])
        self.assertIn("left out, as there is none: compiler, spare\n", output)
        self.assertEqual(counts(self.tally), (0, 0))
        compiler = Job("compiler", self.fails(OutOfReach("there is none")))
        output = self.run_jobs([self.job("test", needs=(compiler,))])
        self.assertIn("test: NOT RUN: there is none\n", output)
        self.assertEqual(counts(self.tally), (0, 2))

    def test_what_a_job_needs_runs_before_it_once(self):
        base = self.job("base", rank=9)
        self.run_jobs([self.job("one", needs=(base,)), self.job("two", needs=(base,))])
        self.assertEqual(self.order, ["base", "one", "two"])

    def test_what_a_job_only_waits_for_is_not_made_for_it(self):
        other = self.job("other", rank=9)
        self.run_jobs([self.job("one", after=(other,))])
        self.assertEqual(self.order, ["one"])
        self.order.clear()
        self.run_jobs([self.job("two", after=(self.job("first", rank=9),)), other])
        self.assertEqual(self.order, ["two", "other"])

    def test_a_job_waits_for_the_end_of_another_even_if_that_failed(self):
        first = Job("first", self.fails(Missing("no network")), rank=9)
        self.run_jobs([self.job("second", after=(first,)), first])
        self.assertEqual(self.order, ["second"])

    def test_two_lanes_run_two_jobs_at_once(self):
        meet = threading.Barrier(2, timeout=DEADLINE)
        self.run_jobs([Job("one", meet.wait), Job("two", meet.wait)], count=2)
        self.assertEqual(counts(self.tally), (0, 0))

    def test_jobs_that_hold_the_same_thing_run_one_at_a_time(self):
        busy = threading.Lock()

        def run() -> None:
            self.assertTrue(busy.acquire(blocking=False))
            self.order.append("held")
            busy.release()

        self.run_jobs([Job(str(number), run, holds="target") for number in range(20)], count=4)
        self.assertEqual(self.order, ["held"] * 20)
        self.assertEqual(counts(self.tally), (0, 0))

    def test_a_job_whose_need_failed_is_a_failure_and_the_rest_runs(self):
        build = Job("build", self.fails(BuildFailed("status 1", ["error: what"])))
        output = self.run_jobs([self.job("tests", needs=(build,)), self.job("others")])
        self.assertEqual(self.order, ["others"])
        # The build, itself and what needed it.
        self.assertEqual(counts(self.tally), (0, 2))
        self.assertIn("error: what", output)
        self.assertIn("tests: NOT RUN: build failed", output)

    def test_what_the_machine_lacks_is_a_failure_only_where_the_lab_is_required(self):
        for required, failed in ((False, 0), (True, 2)):
            kernel = Job("kernel", self.fails(Missing("no archive")))
            output = self.run_jobs([self.job("tests", needs=(kernel,))], required=required)
            self.assertEqual(counts(self.tally), (0, failed))
            self.assertIn("tests: NOT RUN: no archive", output)

    def test_a_job_with_a_fault_of_its_own_is_a_failure(self):
        output = self.run_jobs([Job("odd", self.fails(ZeroDivisionError("by nothing")))], required=False)
        self.assertEqual(counts(self.tally), (0, 1))
        self.assertIn("by nothing", output)

    def test_at_the_deadline_all_that_is_left_has_failed(self):
        def hang() -> None:
            ended = processes.run([sys.executable, "-c", "import signal; signal.pause()"], print, DEADLINE)
            self.tally.test("hang", ended.status == 0 and not ended.late, ended.late)

        output = self.run_jobs([Job("hang", hang, rank=-1), self.job("left")], deadline=1.0)
        self.assertEqual(self.order, [])
        self.assertEqual(counts(self.tally), (0, 2))
        self.assertIn("left ... FAILED: the run was ended after 1 s", output)

    def test_jobs_that_wait_for_each_other_are_a_failure_and_no_standstill(self):
        one, two = self.job("one"), self.job("two")
        one.after, two.after = (two,), (one,)
        self.run_jobs([one, two])
        self.assertEqual(counts(self.tally), (0, 2))


if __name__ == "__main__":
    unittest.main()
