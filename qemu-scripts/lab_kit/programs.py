# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The program that is init in the guests, made from guest/init."""

import pathlib
import sys
from collections.abc import Callable

from . import cache, cargo, cross, debian, processes

BUILD = cargo.ROOT / "guest" / "build"
MAKE_SECONDS = 300


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def guest_init(show: Callable[[str], None] = _show) -> pathlib.Path:
    """The program for guests like this machine."""
    debian.need_tools({"gcc": "gcc", "make": "make"})
    return _make(BUILD, show)


def arm_guest_init(show: Callable[[str], None] = _show) -> pathlib.Path:
    """The program for guests on Arm."""
    debian.need_tools({**cross.PROGRAM_TOOLS, "make": "make"})
    return _make(BUILD / "arm64", show, f"CC={cross.COMPILER}")


def _make(output: pathlib.Path, show: Callable[[str], None], *variables: str) -> pathlib.Path:
    command = ["make", "-s", "-C", str(cargo.ROOT / "guest"), f"OUT={output}", *variables]
    # Tests that run at the same time make it one after the other.
    with cache.lock("guest-init"):
        ended = processes.run(command, show, MAKE_SECONDS)
    if ended.status != 0:
        raise cargo.BuildFailed(f"make -C guest: {ended.late or f'status {ended.status}'}")
    return output / "init"
