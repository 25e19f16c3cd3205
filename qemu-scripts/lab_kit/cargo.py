# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What cargo builds, and where it is."""

import fcntl
import filecmp
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable

from . import cache, cross, processes
from .cache import Missing, say

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Cargo leaves programs of several kinds in one place, one over the other. Those that tests start are kept here.
KEPT = ROOT / "target" / "lab"

PROGRAM = "vhost-device-iommu"
BUILD_SECONDS = 2400


class BuildFailed(Exception):
    """The project's own code does not build. The lines are what was said, if that was not shown."""

    def __init__(self, message: str, lines: list[str] | None = None):
        super().__init__(message)
        self.lines = lines or []


def environment() -> dict[str, str]:
    return {**os.environ, "CARGO_TERM_COLOR": "never"}


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def build(arguments: list[str], name: str, show: Callable[[str], None] = _show, **variables: str) -> pathlib.Path:
    """Builds with `cargo ARGUMENTS` and environment variables: the executable of the target `name`."""
    if show is _show:
        say(f"building {name}")
    found: list[pathlib.Path] = []

    def take(line: str) -> None:
        if not line.startswith('{"'):
            show(line)
            return
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == name:
            found.append(pathlib.Path(message["executable"]))

    run(arguments, take, **variables, options=["--message-format=json-render-diagnostics"])
    if not found:
        raise BuildFailed(f"cargo {' '.join(arguments)}: no executable {name}")
    return found[-1]


def run(
    arguments: list[str], show: Callable[[str], None] = _show, options: list[str] | None = None, **variables: str
) -> None:
    """Runs cargo with environment variables. Raises `BuildFailed` if it fails."""
    command = ["cargo", *arguments, *(options or [])]
    try:
        ended = processes.run(command, show, BUILD_SECONDS, cwd=ROOT, env=environment() | variables)
    except FileNotFoundError as error:
        raise Missing("cargo not found: install Rust") from error
    if ended.status != 0:
        raise BuildFailed(f"cargo {' '.join(arguments)}: {ended.late or f'status {ended.status}'}")


def _build_and_keep(kind: str, arguments: list[str], show: Callable[[str], None], **variables: str) -> pathlib.Path:
    """Builds the program, and keeps a copy that the next build does not replace."""
    kept = KEPT / kind / PROGRAM
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Tests that run at the same time build one after the other.
    with (KEPT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = build([*arguments, "--bin", PROGRAM], PROGRAM, show, **variables)
        if not kept.exists() or not filecmp.cmp(program, kept, shallow=False):
            # Under another name first: the old one may be running.
            new = kept.with_suffix(".new")
            shutil.copy2(program, new)
            new.replace(kept)
    return kept


def backend(show: Callable[[str], None] = _show) -> pathlib.Path:
    """The program under test, as users build it."""
    return build(["build", "--release", "--bin", PROGRAM], PROGRAM, show)


def test_backend(show: Callable[[str], None] = _show) -> pathlib.Path:
    """The program with endpoints on the kernel's mock bus."""
    return _build_and_keep("mock-bus", ["build", "--features", "iommufd-test"], show)


def odd_backend(show: Callable[[str], None] = _show) -> pathlib.Path:
    """The program that sends what drivers have to ignore. The dependencies are those of the other builds."""
    wrapper = str(pathlib.Path(__file__).with_name("odd-bits"))
    return _build_and_keep("odd-bits", ["build"], show, RUSTC_WORKSPACE_WRAPPER=wrapper)


def arm_test_binary(name: str, show: Callable[[str], None] = _show) -> pathlib.Path:
    """A test binary for Arm: one static program, without what a debugger wants, as guests have it in their memory."""
    variables = {"CARGO_TARGET_DIR": "target/arm", "CARGO_PROFILE_DEV_DEBUG": "0", "CARGO_PROFILE_DEV_STRIP": "symbols"}
    arguments = ["test", "--features", "iommufd-test", "--target", cross.TARGET, "--test", name, "--no-run"]
    return build(arguments, name, show, **variables, **cross.cargo_environment())


DEB_VERSION = "3.8.0"


def deb(show: Callable[[str], None] = _show) -> pathlib.Path:
    """The program that makes a Debian package of what Cargo.toml says."""

    def make(path: pathlib.Path) -> None:
        try:
            run(["install", "cargo-deb", "--locked", "--version", DEB_VERSION, "--root", str(path)], show)
        except BuildFailed as failure:
            raise Missing(f"cargo-deb: {failure}") from failure

    return cache.entry(f"cargo-deb-{DEB_VERSION}", make) / "bin" / "cargo-deb"


def test_binary(name: str, show: Callable[[str], None] = _show) -> pathlib.Path:
    """A test binary that wants a kernel with mock devices."""
    return build(["test", "--features", "iommufd-test", "--test", name, "--no-run"], name, show)
