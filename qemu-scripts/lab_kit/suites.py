# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The suites, as jobs: `checks`, `unit`, `host`, `guest`, `nested`. docs/testing.md says what each proves."""

import functools
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import cargo, classes, debian, fuzzing, processes, rotation, trouble
from .cache import Missing
from .cargo import ROOT
from .classes import TestClass
from .lanes import Job
from .parts import CHECKS, HOST, LAB, TESTS, TURNS, UNIT, Parts
from .tally import Libtest, Tally

FUNCTIONAL = ROOT / "tests" / "functional"
NESTED = ROOT / "tests" / "nested"
LAB_TESTS = ROOT / "tests" / "lab"
DEPLOY_TESTS = ROOT / "tests" / "deploy"

CHECK_SECONDS = 1800
UNIT_SECONDS = 2400
MIRI_SECONDS = 3600
HOST_SECONDS, LONG_HOST_SECONDS = 1800, 7200
# A worker that says nothing for so long hangs: no test of the default run takes half of it on a busy machine.
GUEST_SILENCE, NESTED_SILENCE = 900, 1800
CLASS_SECONDS = 3600

# Beside an edu function on the root bus: an NVMe disk and an edu function behind ports of their own, and two more that
# share a bridge to conventional PCI, and with it an IOMMU group.
NESTED_DEVICES = (
    "-device pcie-root-port,id=port0,chassis=1,slot=1 "
    "-drive file={disk},format=raw,if=none,id=disk -device nvme,drive=disk,serial=disk,bus=port0 "
    "-device pcie-pci-bridge,id=bridge -device edu,bus=bridge,addr=1 -device edu,bus=bridge,addr=2 "
    "-device pcie-root-port,id=port1,chassis=2,slot=2 -device edu,bus=port1"
)
DISK_BYTES = 64 << 20
# How long the disk is written and read at a time: in a default run, in a run of everything.
DISK_SECONDS, LONG_DISK_SECONDS = "20", "120"


@dataclass
class Options:
    """What of the suites is to run."""

    # All tests in their full sizes, instead of a default run.
    everything: bool = False
    # Tests whose name has this in it.
    pattern: str | None = None
    # Where logs are kept.
    keep: Path | None = None
    # Processor seconds that classes took.
    measured: dict[str, float] = field(default_factory=dict)

    def wants(self, name: str) -> bool:
        return self.pattern is None or classes.matches(name, self.pattern)


class Suites:
    """Makes jobs of suites. What is needed of the lab is shared by all."""

    def __init__(self, tally: Tally, options: Options):
        self._tally = tally
        self._options = options
        self.parts = Parts(tally)
        # The names of the tests that jobs run, where a job is a class.
        self.tests: dict[str, tuple[str, ...]] = {}

    def jobs(self, suite: str) -> list[Job]:
        return SUITES[suite](self)

    def _test(self, name: str, command: list[str], seconds: float, **options) -> None:
        """A command that is one test; what it said is shown if it failed."""
        said: list[str] = []
        started = time.monotonic()
        ended = processes.run(command, said.append, seconds, cwd=ROOT, **options)
        detail = ended.late or (f"status {ended.status}" if ended.status else f"{time.monotonic() - started:.0f} s")
        self._tally.test(name, ended.status == 0 and not ended.late, detail, said)

    def checks(self) -> list[Job]:
        """Format, lints, documentation, scripts, what a package installs."""
        clippy = ["clippy", "--all-targets", "--all-features", "--", "-D", "warnings"]
        doc = {**cargo.environment(), "RUSTDOCFLAGS": "-Dwarnings"}

        def rust(name: str, tool: str, arguments: list[str], weight: float, holds: str, environment=None) -> Job:
            def run() -> None:
                if tool and subprocess.run(["cargo", tool, "--version"], capture_output=True, check=False).returncode:
                    raise Missing(f"cargo {tool} is not installed: rustup component add {tool}")
                environ = environment or cargo.environment()
                self._test(f"checks::{name}", ["cargo", *arguments], CHECK_SECONDS, env=environ)

            return Job(f"checks::{name}", run, CHECKS, weight, holds=holds)

        def shellcheck() -> None:
            debian.need_tools({"shellcheck": "shellcheck"})
            self._test("checks::shellcheck", ["shellcheck", *shell_scripts()], CHECK_SECONDS)

        jobs = [
            rust("fmt", "fmt", ["fmt", "--check"], 100, ""),
            rust("clippy", "clippy", clippy, 90, "target/debug"),
            rust("doc", "", ["doc", "--no-deps"], 30, "target/debug", doc),
            Job("checks::shellcheck", shellcheck, CHECKS, 5),
        ]
        jobs = [job for job in jobs if self._options.wants(job.name)]
        if self._options.pattern is None or self._in_directory(DEPLOY_TESTS):
            needs = [self.parts.libvirt, self.parts.backend, self.parts.qemu]
            if self._options.everything:
                needs += [self.parts.cargo_deb, self.parts.debian_kernel]
            jobs.append(Job("checks::deploy", self._deploy_tests, UNIT, 20, needs=tuple(needs)))
        return jobs

    def _deploy_tests(self) -> None:
        """What a package installs, on a system with libvirt and systemd."""
        debian.need_tools({"unshare": "util-linux", "mount": "mount", "cpio": "cpio"})
        self._unittest("checks::deploy", DEPLOY_TESTS)

    def _in_directory(self, directory: Path) -> bool:
        """Whether the pattern names a test there."""
        texts = (path.read_text() for path in directory.glob("test_*.py"))
        return any(self._options.wants(name) for text in texts for name in re.findall(r"(?:def|class) (\w+)", text))

    def unit(self) -> list[Job]:
        """cargo test; miri on the pure modules; the fuzz targets; the tests of the lab itself."""
        options, jobs = self._options, []

        def rust(name: str, command: list[str], seconds: float, environment: dict[str, str]) -> None:
            libtest = Libtest(self._tally, "unit")
            ended = processes.run(command, libtest.line, seconds, cwd=ROOT, env=environment)
            libtest.ended(f"{name} ends with status 0", ended.status, ended.late)

        def cargo_test() -> None:
            filters = [options.pattern] if options.pattern else []
            sizes = {"LAB_EXHAUSTIVE": "1"} if options.everything else {}
            environment = {**cargo.environment(), **sizes}
            rust("cargo test", ["cargo", "test", "--no-fail-fast", *filters], UNIT_SECONDS, environment)

        def miri() -> None:
            """The modules without I/O. Not every toolchain has it: its lack is no failure."""
            version = subprocess.run(["cargo", "+nightly", "miri", "--version"], capture_output=True, check=False)
            if version.returncode != 0:
                self._tally.show("unit: miri NOT RUN: not installed: rustup +nightly component add miri rust-src")
                return
            # Property tests read the clock and the environment.
            environment = {**cargo.environment(), "MIRIFLAGS": "-Zmiri-disable-isolation"}
            command = ["cargo", "+nightly", "miri", "test", "--lib", "--", "spec::", "device::", "host::mapping::"]
            rust("cargo miri test", command, MIRI_SECONDS, environment)

        jobs.append(Job("unit::cargo test", cargo_test, UNIT, 100, holds="target/debug"))
        if options.pattern is None and self._miri_runs():
            spare = not self._options.everything
            jobs.append(Job("unit::miri", miri, TURNS, 560, holds="target/miri", spare=spare))
        jobs.append(Job("unit::tests of the lab", self._lab_tests, CHECKS, 99))
        return jobs + [job for job in fuzzing.jobs(self._tally, options.everything) if options.wants(job.name)]

    def _miri_runs(self) -> bool:
        reason = "" if self._options.everything else rotation.miri_skips(self._change)
        if reason:
            self._tally.show(f"rotation: miri: left out: {reason}")
        return not reason

    @functools.cached_property
    def _change(self) -> rotation.Change:
        """What has changed, said once."""
        change = rotation.change()
        self._tally.show(f"rotation: commit {change.commit[:12] or 'unknown'}, changes since: {change.since}")
        return change

    def _lab_tests(self) -> None:
        """The tests of what runs the tests."""
        self._unittest("unit::tests of the lab", LAB_TESTS)

    def _unittest(self, name: str, directory: Path) -> None:
        """Tests that need no guest: by unittest alone."""
        said: list[str] = []
        filters = ["-k", self._options.pattern] if self._options.pattern else []
        command = [sys.executable, "-m", "unittest", "discover", "-v", "-s", str(directory), *filters]
        ended = processes.run(command, said.append, CHECK_SECONDS, cwd=ROOT, env=self._environment())
        ran = next((int(found[1]) for line in said if (found := re.match(r"Ran (\d+) tests? in ", line))), 0)
        failed = sum(bool(re.match(r"(FAIL|ERROR): ", line)) for line in said)
        skipped = 0
        for line in said:
            if found := re.match(r"(test_\w+) \((.*)\) \.\.\. (.*)$", line):
                self._tally.show(f"test {name.split('::')[0]}::{found[2]} ... {found[3]}")
                if found[3].startswith("skipped "):
                    skipped += 1
                    self._tally.missing(f"{name}: {found[1]}", found[3].removeprefix("skipped "))
        self._tally.count(name, max(ran - failed - skipped, 0), failed)
        if failed or ended.status not in (0, 5) or ended.late or (not ran and not filters):
            good = f"unittest: {ended.late or f'status {ended.status}'}, {ran} tests"
            self._tally.test(f"{name} end with status 0", False, good, said)

    def host(self) -> list[Job]:
        """The iommufd host on the kernel's mock devices, in the lab kernel."""
        parts = self.parts

        def run() -> None:
            libtest = Libtest(self._tally, "host")
            program = [parts.environment["LAB_HOST_SUITE"], "--test-threads=1", "--color=never"]
            pattern = [self._options.pattern] if self._options.pattern else []
            environment = self._environment()
            passed_on = (key for key in ("LAB_EXHAUSTIVE", "LAB_SLICE") if key in environment)
            options = ["--iommu", *(f"--env={key}={environment[key]}" for key in passed_on)]
            options.append(f"--env=LAB_TEST_BACKEND={parts.environment['LAB_TEST_BACKEND']}")
            seconds = LONG_HOST_SECONDS if self._options.everything else HOST_SECONDS
            ended = self._in_lab_kernel("host", libtest.line, [*program, *pattern], options, seconds, ROOT)
            libtest.ended("ends with status 0", ended.status, ended.late)

        return [Job("host", run, HOST, 25, needs=(parts.kernel, parts.qemu, parts.host_suite, parts.test_backend))]

    def _in_lab_kernel(
        self, name: str, line: Callable[[str], None], program: list[str], options: list[str], seconds: float, cwd: Path
    ) -> processes.Ended:
        """Runs tests in the lab kernel, and reads the kernel's log afterwards: that is one test more."""
        with tempfile.TemporaryDirectory(prefix="lab-") as scratch:
            log = (self._options.keep or Path(scratch)) / f"{name.replace('::', '-')}.kernel.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.unlink(missing_ok=True)
            command = [*LAB, "run-host", f"--timeout={seconds}", f"--log={log}", *options, *program]
            # The child ends the machine at its deadline; if it does not, it is ended with it.
            ended = processes.run(command, line, seconds + 60, cwd=cwd)
            text = log.read_text(errors="replace") if log.exists() else ""
            found = trouble.lines(text) if text else ["there is no log"]
            self._tally.test(f"{name} leaves no warning in the kernel's log", not found, block=found)
            return ended

    def guest(self) -> list[Job]:
        """Linux guests behind the back-end, with the software host: stock ones, with the patched driver, on the debug
        kernel, and on Arm."""
        return self._chosen(self._classes("guest", FUNCTIONAL), self._guest_job)

    def _chosen(self, found: list[TestClass], job: Callable[[TestClass], Job]) -> list[Job]:
        """The jobs of those classes that are in this run."""
        if self._options.everything or self._options.pattern is not None:
            return [job(cls) for cls in found]
        selection = rotation.select(found, self._change)
        self._tally.show(*(f"rotation: {line}" for line in selection.lines))
        jobs = []
        for cls in selection.classes:
            made = job(cls)
            if cls.name in selection.turns:
                made.rank, made.turn, made.spare = TURNS, selection.turns[cls.name], True
            jobs.append(made)
        return jobs

    def _classes(self, suite: str, directory: Path) -> list[TestClass]:
        environment = self._environment()
        try:
            found = classes.find(suite, directory, environment)
        except classes.Unloadable as failure:
            self._tally.test(f"{suite}::tests can be listed", False, block=failure.lines)
            return []
        return found if self._options.pattern is None else classes.matching(found, self._options.pattern)

    def _environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            **self.parts.environment,
            "PYTHONPATH": f"{classes.SCRIPTS}:{FUNCTIONAL}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "LAB_DISK_SECONDS": os.environ.get("LAB_DISK_SECONDS", DISK_SECONDS),
        }
        if self._options.everything:
            environment |= {"LAB_EXHAUSTIVE": "1", "LAB_DISK_SECONDS": LONG_DISK_SECONDS}
        if self._options.keep:
            environment["LAB_KEEP"] = str(self._options.keep)
        return environment

    def _measured(self, name: str, run: Callable[[], None]) -> Callable[[], None]:
        """Notes what it takes of the processors: that is the same on a busy machine."""

        @functools.wraps(run)
        def measure() -> None:
            before = processes.used()
            run()
            self._options.measured[name] = processes.used() - before

        return measure

    def _guest_job(self, cls: TestClass) -> Job:
        parts, name = self.parts, f"guest::{cls.name}"
        self.tests[name] = cls.tests

        def run() -> None:
            classes.run(self._tally, cls, FUNCTIONAL, self._environment(), CLASS_SECONDS, GUEST_SILENCE)

        needs = [parts.backend, parts.odd_backend]
        if cls.kernel == "arm_nesting_kernel":
            needs = [parts.arm_qemu, parts.arm_init, parts.arm_nesting_kernel, parts.arm_suite]
        elif cls.kind == "arm":
            needs += [parts.arm_qemu, parts.arm_kernel, parts.arm_patched_kernel, parts.arm_init, parts.arm_selftest]
        else:
            needs += [parts.qemu, parts.kernel, parts.patched_kernel, parts.debian_kernel, parts.init, parts.selftest]
        if cls.kind == "debug":
            needs.append(parts.debug_kernels)
        return Job(name, self._measured(name, run), TESTS, cls.weight, tuple(needs))

    def nested(self) -> list[Job]:
        """The lab kernel as a host with an emulated Intel IOMMU and devices behind it, and guests inside it."""
        return self._chosen(self._classes("nested", NESTED), self._nested_job)

    def _nested_job(self, cls: TestClass) -> Job:
        parts, name = self.parts, f"nested::{cls.name}"
        self.tests[name] = cls.tests

        def run() -> None:
            environment = {**self._environment(), "LAB_PATIENCE": "5"}
            passed_on = (key for key in environment if key.startswith(("LAB_", "PYTHON")))
            with tempfile.NamedTemporaryFile(prefix="lab-", suffix=".img", dir="/var/tmp") as disk:
                disk.truncate(DISK_BYTES)
                options = ["--iommu", "--mem=4G", f"--qemu={NESTED_DEVICES.format(disk=shlex.quote(disk.name))}"]
                options += [f"--env={key}={environment[key]}" for key in passed_on]
                # The interpreter itself: a wrapper of it in PATH may need more than the lab kernel has.
                program = classes.command(NESTED, cls.tests, os.path.realpath(sys.executable))
                counter = classes.Run(self._tally, cls)
                ended = self._in_lab_kernel(name, counter.line, program, options, CLASS_SECONDS, NESTED)
                counter.ended(ended, list)

        needs = (
            parts.backend, parts.test_backend, parts.qemu, parts.kernel, parts.patched_kernel, parts.debian_kernel,
            parts.init, parts.selftest,
        )  # fmt: skip
        return Job(name, self._measured(name, run), TESTS, cls.weight, needs)


SUITES: dict[str, Callable[[Suites], list[Job]]] = {
    "checks": Suites.checks,
    "unit": Suites.unit,
    "host": Suites.host,
    "guest": Suites.guest,
    "nested": Suites.nested,
}


# Where scripts are that something runs; those of findings/ show others' surprises, to be read.
WITH_SCRIPTS = (".ci", "guest", "qemu-scripts", "tests", "share")


def shell_scripts() -> list[str]:
    """Every script for the shell."""
    command = ["git", "ls-files", "-z", *WITH_SCRIPTS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.readline().strip() in (b"#!/bin/sh", b"#!/bin/bash"):
                    found.append(str(path))
    return found
