# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Counts of tests, and the lines that are shown of them: a line a test, and what a failed one has said in one piece."""

import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;")
TEST = re.compile(r"^test (.+) \.\.\. (.*)$")


@dataclass
class Tally:
    """Tests that passed and failed. A missing lab is a failure if the lab is required. Threads share it."""

    lab_required: bool = False
    passed: int = 0
    failed: int = 0
    # What failed, in the order in which it did.
    failures: list[str] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def show(self, *lines: str) -> None:
        """Shows lines in one piece."""
        with self._lock:
            print("\n".join(lines), flush=True)

    def test(self, name: str, good: bool, detail: str = "", block: Sequence[str] = ()) -> None:
        """Counts a test and shows a line of it, and `block` if it failed."""
        with self._lock:
            self.count(name, int(good), int(not good))
            self.show(f"test {name} ... {'ok' if good else 'FAILED'}{detail and ': ' + detail}")
            if block and not good:
                self.show(f"---- {name}", *block, f"---- end of {name}")

    def count(self, name: str, passed: int, failed: int) -> None:
        """Counts tests whose lines are shown already."""
        with self._lock:
            self.passed += passed
            self.failed += failed
            if failed:
                self.failures.append(name if failed == 1 else f"{name} ({failed} tests)")

    def missing(self, name: str, why: object) -> None:
        """A part that cannot run on this machine."""
        with self._lock:
            self.show(f"{name}: NOT RUN: {why}")
            if self.lab_required:
                self.count(f"{name}: not run", 0, 1)


class Output(Protocol):
    """Where lines are shown."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class Libtest:
    """Reads what libtest says, for `suite`: a line a test is shown, the rest is kept until something fails."""

    # More than this is not shown of what came before a failure.
    KEPT = 4000

    def __init__(self, tally: Tally, suite: str):
        self._tally = tally
        self._suite = suite
        self._kept: list[str] = []
        self._failed = 0

    def line(self, line: str) -> None:
        """Takes a line without its end."""
        if found := RESULT.match(line):
            passed, failed = int(found[1]), int(found[2])
            self._failed += failed
            self._tally.count(self._suite, passed, failed)
            if failed:
                self._show([*self._kept, line])
            self._kept = []
        elif found := TEST.match(line):
            self._tally.show(f"test {self._suite}::{found[1]} ... {found[2]}")
        else:
            self._kept = [*self._kept[-self.KEPT :], line]

    def ended(self, what: str, status: int, late: str = "") -> None:
        """A runner ended: one that failed without a failed test (it did not compile, it died, it was late) is a failure."""
        if late or (status != 0 and not self._failed):
            self._tally.test(f"{self._suite}::{what}", False, late or f"status {status}", self._kept)

    def _show(self, lines: list[str]) -> None:
        self._tally.show(f"---- {self._suite}", *lines, f"---- end of {self._suite}")


def lines(command: list[str], **options: Any) -> Iterator[str | int]:
    """The lines of a command's output as they come, and then its exit status."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    ) as process:
        assert process.stdout
        for raw in process.stdout:
            yield raw.decode(errors="replace").rstrip("\n")
    yield process.returncode
