# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Counts of tests, read from the output of the test runners while it is shown."""

import abc
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

CARGO = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;")
UNITTEST_RAN = re.compile(r"^Ran (\d+) tests? in ")
UNITTEST_END = re.compile(r"^(?:OK|FAILED)(?: \((.*)\))?$")


@dataclass
class Tally:
    """Tests that passed and failed. A missing lab is a failure if the lab is required."""

    lab_required: bool = False
    passed: int = 0
    failed: int = 0

    def test(self, name: str, good: bool, detail: str = "") -> None:
        """Counts one test of ours, with a line like those of cargo."""
        self.passed += good
        self.failed += not good
        print(f"test {name} ... {'ok' if good else 'FAILED'}{detail and ': ' + detail}", flush=True)

    def missing(self, suite: str, why: object) -> None:
        """A part that cannot run on this machine."""
        print(f"{suite}: NOT RUN: {why}", flush=True)
        self.failed += self.lab_required

    def finished(self, what: str, status: int, failed_before: int) -> None:
        """A runner ended: one that failed without a failed test (it did not compile, it died) is a failure."""
        if status != 0 and self.failed == failed_before:
            self.test(f"{what} ends with status 0", False, f"status {status}")


class Output(Protocol):
    """Where lines are shown."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> None: ...


class Counter(abc.ABC):
    """Counts from a test runner's output, and shows what is written to it."""

    def __init__(self, tally: Tally):
        self._tally = tally

    @abc.abstractmethod
    def line(self, line: str) -> None:
        """Takes a line without its end."""

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        self.line(text.rstrip("\n"))

    def flush(self) -> None:
        sys.stdout.flush()


class CargoCounter(Counter):
    """Reads libtest's output."""

    def line(self, line: str) -> None:
        if found := CARGO.match(line):
            self._tally.passed += int(found[1])
            self._tally.failed += int(found[2])


class UnittestCounter(Counter):
    """Reads unittest's output."""

    def __init__(self, tally: Tally):
        super().__init__(tally)
        self._ran = 0

    def line(self, line: str) -> None:
        if found := UNITTEST_RAN.match(line):
            self._ran = int(found[1])
        elif found := UNITTEST_END.match(line):
            counts = dict(re.findall(r"([a-z ]+)=(\d+)", found[1] or ""))
            counts = {name.strip(): int(count) for name, count in counts.items()}
            failed = counts.get("failures", 0) + counts.get("errors", 0) + counts.get("unexpected successes", 0)
            skipped = counts.get("skipped", 0)
            # A test is skipped when the lab lacks something.
            self._tally.failed += failed + (skipped if self._tally.lab_required else 0)
            # An error in a class's set-up counts as a failure but not as a test that ran.
            self._tally.passed += max(self._ran - failed - skipped, 0)


def lines(command: list[str], **options: Any) -> Iterator[str | int]:
    """The lines of a command's output as they come, and then its exit status."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    ) as process:
        assert process.stdout
        for raw in process.stdout:
            yield raw.decode(errors="replace").rstrip("\n")
    yield process.returncode


def follow(command: list[str], count: Callable[[str], None], **options: Any) -> int:
    """Runs a command, shows its output and counts from it: its exit status."""
    status = 1
    for line in lines(command, **options):
        if isinstance(line, int):
            status = line
        else:
            print(line, flush=True)
            count(line)
    return status
