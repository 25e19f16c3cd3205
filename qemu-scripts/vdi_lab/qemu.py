# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU with the generic vhost-user device (newer than 10.0)."""

import functools
import os
import pathlib
import shlex
import shutil
import subprocess

from . import cache, debian
from .cache import Missing

DEVICE = "vhost-user-test-device-pci"
PACKAGES = ["base-files", "qemu-system-x86"]

# Run by the unpacked loader, on the unpacked libraries, with the unpacked firmware: an ordinary process that sees the
# machine's files and sockets.
WRAPPER = """\
#!/bin/sh
root={root}
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --argv0 "$0" --library-path "$root/usr/lib/x86_64-linux-gnu" \\
    "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
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


def _make(path: pathlib.Path) -> None:
    debian.fetch(path, PACKAGES, debian.BACKPORTS, f"QEMU from {debian.BACKPORTS}", dependencies=True)
    wrapper = path / "qemu-system-x86_64"
    wrapper.write_text(WRAPPER.format(root=shlex.quote(str(path / "root"))))
    wrapper.chmod(0o755)
    if not _has_device([str(wrapper)]):
        raise Missing(f"QEMU from {debian.BACKPORTS} does not run here or has no {DEVICE}: try {wrapper} --version")


@functools.cache
def ensure_qemu() -> list[str]:
    """The command that runs QEMU: the one in VDI_QEMU, the system's own if it is new enough, or a fetched one."""
    if chosen := os.environ.get("VDI_QEMU"):
        return shlex.split(chosen)
    own = shutil.which("qemu-system-x86_64")
    if own and _has_device([own]):
        return [own]
    if os.uname().machine != "x86_64":
        raise Missing(f"no qemu-system-x86_64 with {DEVICE} in PATH, and the packaged one is for x86_64: set VDI_QEMU")
    try:
        path = cache.entry(f"qemu-{cache.key(*PACKAGES, debian.BACKPORTS, WRAPPER)}", _make)
    except Missing as missing:
        raise Missing(f"QEMU newer than 10.0: {missing}; install one or set VDI_QEMU") from missing
    return [str(path / "qemu-system-x86_64")]


def version() -> str:
    """The first line of what QEMU says about itself."""
    output = debian.run([*ensure_qemu(), "--version"], "QEMU")
    return output.splitlines()[0]
