# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Jobs, and the lanes that run them side by side.

A free lane takes the job that is ready and comes first: by rank, then by turn, then the heaviest. Which order that is
follows from the jobs alone; whether a job that may be left out still runs follows from the time that the others took.
"""

import enum
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import processes
from .cache import Missing, OutOfReach
from .cargo import BuildFailed
from .tally import Tally


class State(enum.Enum):
    """Where a job is."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    DONE = enum.auto()
    # It could not be carried out, or what it needs could not.
    FAILED = enum.auto()
    # There was no time for it, or what it needs is out of reach.
    LEFT_OUT = enum.auto()


@dataclass(eq=False)
class Job:
    """A part of a run. Failed tests are no failure of the job that ran them: what comes after it can still run."""

    name: str
    run: Callable[[], None]
    # Lower ones first.
    rank: int = 0
    # About how many seconds it takes.
    weight: float = 1.0
    # What it cannot do without, and what it only has to wait for.
    needs: tuple["Job", ...] = ()
    after: tuple["Job", ...] = ()
    # Of jobs that hold the same thing, one runs at a time.
    holds: str = ""
    # Whether it makes what others need, so that its end is worth a line.
    makes: bool = False
    # Whether it, and what it alone needs, is left out of a run that has no time for it.
    spare: bool = False
    # Of the same rank, lower ones first.
    turn: int = 0
    state: State = field(default=State.WAITING, init=False)
    # Why it failed or was left out, if not for the time, and whether that is counted already.
    reason: str = field(default="", init=False)
    counted: bool = field(default=False, init=False)

    @property
    def over(self) -> bool:
        return self.state in (State.DONE, State.FAILED, State.LEFT_OUT)


def closure(jobs: Sequence[Job]) -> list[Job]:
    """The jobs and all that they need, each once. What they only wait for is not among them."""
    found: dict[Job, None] = {}

    def add(job: Job) -> None:
        if job not in found:
            for needed in job.needs:
                add(needed)
            found[job] = None

    for job in jobs:
        add(job)
    return list(found)


class Lanes:
    """Runs jobs side by side, until `deadline` seconds have passed.

    A spare job begins only if by its weight it ends within `box` seconds of the start. One that does not is neither passed
    nor failed, and a line says so.
    """

    def __init__(self, tally: Tally, lanes: int, deadline: float, box: float = float("inf")):
        self._tally = tally
        self._lanes = lanes
        self._deadline = deadline
        self._box = box
        self._started = 0.0
        # What no job needs that must run.
        self._spare: set[Job] = set()
        self._changed = threading.Condition()
        self._jobs: list[Job] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs the jobs and what they need. A job that could not run is counted as `Tally.missing` counts."""
        self._jobs = closure(jobs)
        self._spare = set(self._jobs) - set(closure([job for job in jobs if not job.spare]))
        self._started = time.monotonic()
        timer = threading.Timer(self._deadline, processes.end_all)
        timer.daemon = True
        timer.start()
        threads = [threading.Thread(target=self._lane, daemon=True) for _ in range(self._lanes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        timer.cancel()
        self._report()

    def _lane(self) -> None:
        while job := self._take():
            self._carry_out(job)

    def _take(self) -> Job | None:
        """The next job, when there is one; None at the end."""
        with self._changed:
            while True:
                self._pass_failures_on()
                self._leave_out()
                waiting = [job for job in self._jobs if job.state is State.WAITING]
                if not waiting or processes.stopped():
                    return None
                if ready := [job for job in waiting if self._ready(job)]:
                    job = min(ready, key=lambda job: (job.rank, job.turn, -job.weight, job.name))
                    job.state = State.RUNNING
                    return job
                if not any(job.state is State.RUNNING for job in self._jobs):
                    for job in waiting:
                        job.state, job.counted = State.FAILED, True
                        self._tally.test(job.name, False, "it waits for another that waits for it")
                    return None
                self._changed.wait()

    def _ready(self, job: Job) -> bool:
        held = {other.holds for other in self._jobs if other.state is State.RUNNING and other.holds}
        waits = [other for other in job.after if other in self._jobs and not other.over]
        return job.holds not in held and not waits and all(needed.state is State.DONE for needed in job.needs)

    def _pass_failures_on(self) -> None:
        """Fails what needs a job that has failed. Jobs are in the order of their needs."""
        for job in self._jobs:
            if job.state is State.WAITING:
                if failed := [needed for needed in job.needs if needed.state is State.FAILED]:
                    job.state, job.reason = State.FAILED, failed[0].reason

    def _leave_out(self) -> None:
        """Leaves out what would end too late, and what needs that. Jobs are in the order of their needs."""
        left = self._started + self._box - time.monotonic()
        for job in self._jobs:
            if job in self._spare and job.state is State.WAITING:
                without = [needed for needed in job.needs if needed.state is State.LEFT_OUT]
                if without or job.weight > left:
                    job.state, job.reason = State.LEFT_OUT, without[0].reason if without else ""

    def _carry_out(self, job: Job) -> None:
        state, reason = State.DONE, ""
        started = time.monotonic()
        try:
            job.run()
            if job.makes:
                self._tally.show(f"lab: {job.name}: there after {time.monotonic() - started:.0f} s")
        except Missing as missing:
            is_left_out = isinstance(missing, OutOfReach) and job in self._spare
            state, reason = State.LEFT_OUT if is_left_out else State.FAILED, str(missing)
        except BuildFailed as failure:
            state, reason, job.counted = State.FAILED, f"{job.name} failed", True
            self._tally.test(job.name, False, str(failure), failure.lines)
        except Exception:
            state, reason, job.counted = State.FAILED, f"{job.name} failed", True
            self._tally.test(job.name, False, block=traceback.format_exc().splitlines())
        with self._changed:
            job.state, job.reason = state, reason
            self._changed.notify_all()

    def _report(self) -> None:
        """Says of every job that did not run why it did not."""
        unrun: dict[str, list[Job]] = {}
        for job in self._jobs:
            if job.state is State.FAILED and not job.counted:
                unrun.setdefault(job.reason, []).append(job)
            if not job.over:
                self._tally.test(job.name, False, f"{processes.STOPPED} after {self._deadline:.0f} s, before this")
        left_out: dict[str, list[str]] = {}
        for job in self._jobs:
            if job.state is State.LEFT_OUT:
                left_out.setdefault(job.reason or "the time was up", []).append(job.name)
        for reason, names in left_out.items():
            self._tally.show(f"left out, as {reason}: {', '.join(names)}")
        for reason, jobs in unrun.items():
            for job in jobs:
                self._tally.missing(job.name, reason)
