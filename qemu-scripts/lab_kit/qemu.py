# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU with the generic vhost-user device (newer than 10.0), for PCs and for Arm."""

import functools
import os
import pathlib
import shlex
import shutil
import subprocess

from . import cache, debian
from .cache import Missing

DEVICE = "vhost-user-test-device-pci"

# Programs, and the packages that have them.
PC = ("qemu-system-x86_64", "qemu-system-x86")
ARM = ("qemu-system-aarch64", "qemu-system-arm")

# Run by the unpacked loader, on the unpacked libraries, with the unpacked firmware: an ordinary process that sees the
# machine's files and sockets.
WRAPPER = """\
#!/bin/sh
root={root}
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --argv0 "$0" --library-path "$root/usr/lib/x86_64-linux-gnu" \\
    "$root/usr/bin/{program}" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


def _has_device(command: list[str]) -> bool:
    try:
        result = subprocess.run(
            [*command, "-device", "help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return DEVICE in result.stdout


def _packaged(program: str, package: str) -> pathlib.Path:
    packages = ["base-files", package]

    def make(path: pathlib.Path) -> None:
        debian.fetch(path, packages, debian.BACKPORTS, f"{package} from {debian.BACKPORTS}", dependencies=True)
        wrapper = path / program
        wrapper.write_text(WRAPPER.format(root=shlex.quote(str(path / "root")), program=program))
        wrapper.chmod(0o755)
        if not _has_device([str(wrapper)]):
            raise Missing(
                f"{package} from {debian.BACKPORTS} does not run here or has no {DEVICE}: try {wrapper} --version"
            )

    return cache.entry(f"qemu-{cache.key(*packages, debian.BACKPORTS, WRAPPER)}", make) / program


def _ensure(variable: str, program: str, package: str) -> list[str]:
    if chosen := os.environ.get(variable):
        return shlex.split(chosen)
    own = shutil.which(program)
    if own and _has_device([own]):
        return [own]
    if os.uname().machine != "x86_64":
        raise Missing(f"no {program} with {DEVICE} in PATH, and the packaged one is for x86_64: set {variable}")
    try:
        return [str(_packaged(program, package))]
    except Missing as missing:
        raise Missing(f"QEMU newer than 10.0: {missing}; install one or set {variable}") from missing


@functools.cache
def ensure_qemu() -> list[str]:
    """The command that runs QEMU: the one in LAB_QEMU, the system's own if it is new enough, or a fetched one."""
    return _ensure("LAB_QEMU", *PC)


@functools.cache
def ensure_arm_qemu() -> list[str]:
    """The same for Arm, and LAB_ARM_QEMU."""
    return _ensure("LAB_ARM_QEMU", *ARM)


def version() -> str:
    """The first line of what QEMU says about itself."""
    output = debian.run([*ensure_qemu(), "--version"], "QEMU")
    return output.splitlines()[0]
