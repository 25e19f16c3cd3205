# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The program that is init in the guests, made from guest/init."""

import pathlib
import subprocess
import sys

from . import cache, cargo, cross, debian

BUILD = cargo.ROOT / "guest" / "build"


def guest_init() -> pathlib.Path:
    """The program for guests like this machine."""
    debian.need_tools({"gcc": "gcc", "make": "make"})
    return _make(BUILD)


def arm_guest_init() -> pathlib.Path:
    """The program for guests on Arm."""
    debian.need_tools({**cross.PROGRAM_TOOLS, "make": "make"})
    return _make(BUILD / "arm64", f"CC={cross.COMPILER}")


def _make(output: pathlib.Path, *variables: str) -> pathlib.Path:
    command = ["make", "-s", "-C", str(cargo.ROOT / "guest"), f"OUT={output}", *variables]
    # Tests that run at the same time make it one after the other.
    with cache.lock("guest-init"):
        status = subprocess.run(command, check=False, stdout=sys.stderr).returncode
    if status != 0:
        raise cargo.BuildFailed(f"make -C guest: status {status}")
    return output / "init"
