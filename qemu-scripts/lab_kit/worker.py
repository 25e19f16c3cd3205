# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A process that runs some tests of unittest, or lists them, and says in records how each of them went.

    python -m lab_kit.worker DIRECTORY --list
    python -m lab_kit.worker DIRECTORY MODULE.CLASS.TEST...

A record is a line: `MARK` and an object of JSON. Other lines are what the tests and their children say.
"""

import faulthandler
import inspect
import json
import signal
import sys
import time
import unittest
from collections.abc import Iterable, Iterator
from typing import Any

MARK = "@lab "

# How a test went.
OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"


def say(**record: Any) -> None:
    print(f"{MARK}{json.dumps(record)}", flush=True)


def read(line: str) -> dict[str, Any] | None:
    """The record in a line, if there is one. Something else may stand before it, without an end of its line."""
    _, found, text = line.partition(MARK)
    try:
        return json.loads(text) if found else None
    except ValueError:
        return None


class Result(unittest.TestResult):
    """Knows which test runs, and what has come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.started = False
        self._seen = self._counts()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.started = True

    def _counts(self) -> tuple[int, int, int, int]:
        return len(self.errors), len(self.failures), len(self.skipped), len(self.unexpectedSuccesses)

    def outcome(self) -> tuple[str, str]:
        """What has come since the last call."""
        errors, failures, skipped, unexpected = self._seen
        self._seen = self._counts()
        troubles = [text for _, text in [*self.errors[errors:], *self.failures[failures:]]]
        if troubles or len(self.unexpectedSuccesses) > unexpected:
            return FAILED, "\n".join(troubles) or "it passed, and was expected to fail"
        if len(self.skipped) > skipped:
            return SKIPPED, self.skipped[skipped][1]
        return OK, ""


class Suite(unittest.TestSuite):
    """Tests of one class. The iteration goes on when a test has ended: that is when it is reported, with all that its own
    `run` has added to the result."""

    def __init__(self, tests: Iterable[unittest.TestCase], result: Result):
        super().__init__(tests)
        self._result = result

    def __iter__(self) -> Iterator[Any]:
        # The outcome of the class's set-up, of which each of its tests is the victim.
        blocked = None
        for test in super().__iter__():
            name, started = test.id(), time.monotonic()
            say(start=name)
            self._result.started = False
            yield test
            how, text = self._result.outcome()
            if not self._result.started:
                blocked = (how, text) if how != OK else blocked
                how, text = blocked or (FAILED, "it did not run")
            say(test=name, outcome=how, text=text, seconds=round(time.monotonic() - started, 1))


def run(names: list[str]) -> None:
    """Runs tests of one class."""
    result = Result()
    tests = [test for name in names for test in flat(unittest.defaultTestLoader.loadTestsFromName(name))]
    if tests:
        Suite(tests, result).run(result)
        how, text = result.outcome()
        if how != OK:
            say(after=names[0].rpartition(".")[0], text=text)


def flat(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[unittest.TestCase]:
    if isinstance(suite, unittest.TestCase):
        yield suite
    else:
        for part in suite:
            yield from flat(part)


def show(directory: str) -> None:
    """Lists classes: their tests, the modules of tests that they and what they derive from are in, and how guests start."""
    loader = unittest.TestLoader()
    classes: dict[type, list[str]] = {}
    for test in flat(loader.discover(directory, top_level_dir=directory)):
        if type(test).__module__ != "unittest.loader":
            classes.setdefault(type(test), []).append(test.id())
    for error in loader.errors:
        say(error=error)
    for cls, tests in classes.items():
        modules = {base.__module__ for base in inspect.getmro(cls) if base.__module__.startswith("test_")}
        say(
            cls=f"{cls.__module__}.{cls.__qualname__}",
            tests=tests,
            modules=sorted(modules),
            kernel=getattr(getattr(cls, "kernel", None), "__name__", ""),
            shares=getattr(cls, "shares_machines", False),
            turns=getattr(cls, "by_turns", False),
        )


def main() -> int:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    directory, *names = sys.argv[1:]
    sys.path.insert(0, directory)
    if names == ["--list"]:
        show(directory)
    else:
        run(names)
    say(end=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
