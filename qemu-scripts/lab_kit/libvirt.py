# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What our package meets on a machine: libvirt with its QEMU driver, a QEMU and a virtiofsd that it starts, systemd, shells. An
unpacked system to change the root to."""

import functools
import os
import pathlib

from . import cache, debian
from .cache import Missing

PACKAGES = ["base-files", "libvirt-daemon-driver-qemu", "qemu-system-x86", "virtiofsd", "systemd", "udev", "dash", "coreutils", "bash", "fish", "zsh"]


@functools.cache
def ensure_libvirt() -> pathlib.Path:
    """The root directory of that system: the one in LAB_LIBVIRT, or a fetched one."""
    if chosen := os.environ.get("LAB_LIBVIRT"):
        return pathlib.Path(chosen)
    if os.uname().machine != "x86_64":
        raise Missing("the packaged libvirt is for x86_64: set LAB_LIBVIRT")

    def make(path: pathlib.Path) -> None:
        debian.fetch(path, PACKAGES, debian.STABLE, f"libvirt from {debian.STABLE}", dependencies=True)

    return cache.entry(f"libvirt-{cache.key(*PACKAGES, debian.STABLE)}", make) / "root"
