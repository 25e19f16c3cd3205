# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the parts of the demo share: lines with their time, and getting everything that they need."""

import contextlib
import os
import pathlib
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

from lab_kit import kernel, qemu, trouble
from lab_kit.vm import behind, lab
from lab_kit.vm.backend import Backend
from lab_kit.vm.machine import Machine

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRESS_SECONDS = 15

started = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)


class Failed(Exception):
    """A step that did not work: one line says why."""


def check_machine() -> None:
    """One line for each thing that is missing; none is found out halfway."""
    missing = []
    if os.geteuid() != 0:
        missing.append("root: run it with sudo")
    for tool, package in (("cargo", "rustup or cargo"), ("gcc", "gcc"), ("make", "make")):
        if not shutil.which(tool):
            missing.append(f"{tool}: install {package}")
    if missing:
        raise Failed("missing: " + "; ".join(missing))


class Job:
    """A build that runs beside other things; its output is shown only when it fails."""

    def __init__(self, *command: str):
        self._command = command
        self._output = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT
        )

    def _wait(self) -> int | None:
        try:
            return self._process.wait(PROGRESS_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def _text(self) -> str:
        # The file's position is the builder's.
        return os.pread(self._output.fileno(), 1 << 24, 0).decode(errors="replace")

    def finish(self) -> None:
        while (status := self._wait()) is None:
            say(f"still at {' '.join(self._command)}: {self._text().count('Compiling')} crates so far")
        if status:
            raise Failed(f"{' '.join(self._command)} failed:\n{self._text()}")
        say(f"built: {' '.join(self._command)}")


def _programs() -> list[Job]:
    """Our programs, from source. Whatever was built before is not built again."""
    os.environ.setdefault("LAB_BACKEND", str(ROOT / "target/release/vhost-device-iommu"))
    os.environ.setdefault("LAB_INIT", str(ROOT / "guest/build/init"))
    return [Job("cargo", "build", "--release", "--bins"), Job("make", "-C", "guest")]


def prepare(get_kernel: Callable[[], None]) -> None:
    """QEMU and a kernel, and meanwhile our programs. Everything is kept for the next time."""
    jobs = _programs()
    os.environ["LAB_QEMU"] = shlex.join(qemu.ensure_qemu())
    get_kernel()
    say(qemu.version())
    for job in jobs:
        job.finish()


def debian_kernel() -> None:
    found = kernel.ensure_debian_kernel()
    os.environ["LAB_DEBIAN_KERNEL"], os.environ["LAB_DEBIAN_MODULES"] = str(found.image), str(found.modules)


def patched_kernel() -> None:
    found = kernel.ensure_patched_kernel()
    os.environ["LAB_PATCHED_KERNEL"], os.environ["LAB_PATCHED_MODULES"] = str(found.image), str(found.modules)


@contextlib.contextmanager
def running(
    directory: pathlib.Path,
    image: lab.Kernel,
    endpoints: list[str],
    *options: str,
    functions: dict[str, pathlib.Path] | None = None,
) -> Iterator[tuple[Backend, Machine]]:
    """What `behind.running` starts, in a new directory. A guest whose kernel has found a bug is a failure."""
    directory.mkdir()
    with behind.running(directory, image, endpoints, *options, functions=functions) as (backend, machine):
        yield backend, machine
        if found := trouble.lines(machine.console.text):
            raise Failed("\n".join(["the guest's kernel log tells of a bug:", *found]))
