# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Classes of functional tests: which there are, how long they take, and running one of them in a process of its own."""

import fnmatch
import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from . import processes, worker
from .cargo import ROOT
from .tally import Tally

SCRIPTS = ROOT / "qemu-scripts"
WEIGHTS = pathlib.Path(__file__).with_name("weights.json")

# Listing imports the tests; nothing runs.
LIST_SECONDS = 120
# Of what a worker said besides records, this much is shown when something went wrong.
KEPT_LINES = 400
LOG_LINES = 200

# The first words of kernels' names in `vm.lab` that make a class another kind than `lab`.
KINDS = ("debug", "arm")
# Processor seconds that the start of a guest takes with these kernels, and what a test takes besides: for classes that were
# never measured.
GUESSES = {"debug": 15.0, "arm": 5.0, "turns": 3.0, "lab": 3.0, "nested": 60.0}
TEST_GUESS = 0.5


@dataclass(frozen=True)
class TestClass:
    """A class of tests: they run one after the other, in one process."""

    suite: str
    # module.Class
    name: str
    # module.Class.test
    tests: tuple[str, ...]
    # The modules of tests that the class, and what it derives from, are in.
    modules: frozenset[str]
    # What its guests boot: a name of `vm.lab`.
    kernel: str = ""
    weight: float = 0.0
    # Not in every run, although it is on the lab kernel.
    by_turns: bool = False

    @property
    def kind(self) -> str:
        """The kernels that its guests boot: `debug`, `arm`, or `lab`; that one is `turns` for a class that is not in every
        run. Of a class whose guests are in a guest: `nested`."""
        if self.suite == "nested":
            return "nested"
        usual = "turns" if self.by_turns else "lab"
        return next((kind for kind in KINDS if self.kernel.startswith(kind)), usual)


def weights() -> dict[str, float]:
    """Processor seconds that classes took, by `suite::module.Class`."""
    return json.loads(WEIGHTS.read_text()) if WEIGHTS.exists() else {}


def save_weights(measured: dict[str, float]) -> None:
    """Writes what was measured, over what is known."""
    known = {**weights(), **{name: round(seconds, 1) for name, seconds in measured.items()}}
    WEIGHTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


class Unloadable(Exception):
    """The tests cannot be listed. The lines say why."""

    def __init__(self, lines: list[str]):
        super().__init__("the tests cannot be listed")
        self.lines = lines


def find(suite: str, directory: pathlib.Path, environment: dict[str, str]) -> list[TestClass]:
    """The classes of tests in a directory. Raises `Unloadable` if a module cannot be imported."""
    found: list[TestClass] = []
    noise: list[str] = []
    known, complete = weights(), False

    def take(line: str) -> None:
        nonlocal complete
        record = worker.read(line)
        if record is None:
            noise.append(line)
        elif "error" in record:
            noise.append(record["error"])
        elif "cls" in record:
            tests, modules = tuple(record["tests"]), frozenset(record["modules"])
            cls = TestClass(suite, record["cls"], tests, modules, record["kernel"], by_turns=record["turns"])
            start = GUESSES[cls.kind]
            guess = start * (1 if record["shares"] else len(cls.tests)) + TEST_GUESS * len(cls.tests)
            found.append(replace(cls, weight=known.get(f"{suite}::{cls.name}", guess)))
        complete = complete or "end" in (record or {})

    ended = processes.run(command(directory, ["--list"]), take, LIST_SECONDS, cwd=directory, env=environment)
    if noise or not complete or ended.status != 0:
        raise Unloadable([*noise, ended.late or f"status {ended.status}"])
    return sorted(found, key=lambda cls: cls.name)


def command(directory: pathlib.Path, arguments: Iterable[str], interpreter: str = sys.executable) -> list[str]:
    """Runs a worker; `environment` makes it find the lab's code."""
    return [interpreter, "-m", "lab_kit.worker", str(directory), *arguments]


def matching(classes: Iterable[TestClass], pattern: str) -> list[TestClass]:
    """The classes with those of their tests whose name has `pattern` in it. It may have wildcards."""
    found = []
    for cls in classes:
        names = tuple(name for name in cls.tests if matches(f"{cls.suite}::{name}", pattern))
        if names:
            found.append(replace(cls, tests=names, weight=cls.weight * len(names) / len(cls.tests)))
    return found


def matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, f"*{pattern}*")


class Run:
    """What one worker says of a class, counted as it comes."""

    def __init__(self, tally: Tally, cls: TestClass):
        self._tally = tally
        self._class = cls
        self._pending = list(cls.tests)
        self._running = ""
        self._noise: list[str] = []
        self._complete = False

    def line(self, line: str) -> None:
        """Takes a line of the worker's output."""
        record = worker.read(line)
        if record is None:
            self._noise = [*self._noise[-KEPT_LINES:], line]
        elif "start" in record:
            self._running = record["start"]
        elif "test" in record:
            self._ended(record)
        elif "after" in record:
            self._tally.test(f"{self._label(record['after'])} ends", False, block=self._block(record["text"]))
        elif "end" in record:
            self._complete = True

    def _label(self, name: str) -> str:
        return f"{self._class.suite}::{name}"

    def _block(self, text: str) -> list[str]:
        block, self._noise = [*text.splitlines(), *self._noise], []
        return block

    def _ended(self, record: dict[str, Any]) -> None:
        name, how = record["test"], record["outcome"]
        if name not in self._pending:
            # A record that was asked for by nobody would hide one that is missing.
            self._tally.test(self._label(name), False, "it was reported, and was not to run")
            return
        self._pending.remove(name)
        self._running = ""
        if how == worker.SKIPPED:
            self._tally.missing(self._label(name), record["text"])
        else:
            detail = f"{record['seconds']} s"
            self._tally.test(self._label(name), how == worker.OK, detail, self._block(record["text"]))

    def ended(self, ended: processes.Ended, logs: Callable[[], list[str]]) -> None:
        """The worker has ended. Tests that it did not report have failed, and so has a class whose worker died."""
        if not self._pending and self._complete and ended.status == 0 and not ended.late:
            return
        why = ended.late or f"its process ended with status {ended.status}"
        block = [*self._noise, *ended.last_words, *logs()]
        if not self._pending:
            self._tally.test(self._label(f"{self._class.name} ends"), False, why, block)
        for name in self._pending:
            running = name == self._running
            detail = f"it was running: {why}" if running else f"it has no result: {why}"
            self._tally.test(self._label(name), False, detail, block)
            block = []


def run(
    tally: Tally,
    cls: TestClass,
    directory: pathlib.Path,
    environment: dict[str, str],
    deadline: float,
    silence: float,
) -> None:
    """Runs a class of tests in a process of its own, here."""
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="lab-"))
    counter = Run(tally, cls)
    try:
        ended = processes.run(
            command(directory, cls.tests), counter.line, deadline, silence,
            cwd=directory, env={**environment, "TMPDIR": str(scratch)},
        )  # fmt: skip
        counter.ended(ended, lambda: log_ends(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def log_ends(directory: pathlib.Path) -> list[str]:
    """The ends of the logs that a worker has left behind."""
    lines = []
    for log in sorted(directory.rglob("*.log")):
        lines += [f"--- end of {log.relative_to(directory)}"]
        lines += log.read_text(errors="replace").splitlines()[-LOG_LINES:]
    return lines
