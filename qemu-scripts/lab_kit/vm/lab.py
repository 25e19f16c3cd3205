# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where QEMU, the kernels, the back-end and the guest's program are: environment variables say so.

| variable | what |
|---|---|
| `LAB_QEMU` | the command that runs QEMU 11.1 |
| `LAB_KERNEL`, `LAB_MODULES` | the lab kernel and the directory of its modules |
| `LAB_PATCHED_KERNEL`, `LAB_PATCHED_MODULES` | the lab kernel with the patches of guest/linux/, likewise |
| `LAB_DEBUG_KERNEL`, `LAB_DEBUG_MODULES` | the lab kernel with lockdep and KASAN, likewise |
| `LAB_DEBUG_PATCHED_KERNEL`, `LAB_DEBUG_PATCHED_MODULES` | that with the patches, likewise |
| `LAB_DEBIAN_KERNEL`, `LAB_DEBIAN_MODULES` | Debian's packaged kernel, likewise |
| `LAB_ARM_QEMU`, `LAB_ARM_KERNEL`, `LAB_ARM_MODULES` | QEMU for Arm, a kernel for it and its modules |
| `LAB_ARM_PATCHED_KERNEL`, `LAB_ARM_PATCHED_MODULES` | that kernel with the patches, likewise |
| `LAB_BACKEND` | the program under test |
| `LAB_TEST_BACKEND` | the same with endpoints on the kernel's mock bus |
| `LAB_ODD_BACKEND` | the same that sends what drivers have to ignore |
| `LAB_PCI_SELFTEST` | the kernel's own test of PCI endpoints, tools/testing/selftests/pci_endpoint |
| `LAB_INIT` | the guest's program, made by `make -C guest` |
| `LAB_ARM_PCI_SELFTEST`, `LAB_ARM_INIT` | both for Arm |
| `LAB_PATIENCE` | how many times as long as usual to wait for a guest |
| `LAB_DISK_SECONDS` | how long the nested suite writes and reads a passed-through disk |
| `LAB_KEEP` | a directory for logs; without it they are shown for failed tests only |
"""

import os
import pathlib
import shlex
from dataclasses import dataclass


class Missing(Exception):
    """Something that the lab needs is not there."""


@dataclass(frozen=True)
class Kernel:
    """A guest kernel: its image and its modules' directory."""

    image: pathlib.Path
    modules: pathlib.Path


def _path(variable: str) -> pathlib.Path:
    value = os.environ.get(variable)
    if not value:
        raise Missing(f"{variable} is not set: run qemu-scripts/test guest")
    path = pathlib.Path(value)
    if not path.exists():
        raise Missing(f"{variable}: {path} does not exist")
    return path


def _command(variable: str) -> list[str]:
    command = shlex.split(os.environ.get(variable, ""))
    if not command:
        raise Missing(f"{variable} is not set: run qemu-scripts/test guest")
    return command


def qemu() -> list[str]:
    return _command("LAB_QEMU")


def arm_qemu() -> list[str]:
    return _command("LAB_ARM_QEMU")


def backend() -> pathlib.Path:
    return _path("LAB_BACKEND")


def test_backend() -> pathlib.Path:
    return _path("LAB_TEST_BACKEND")


def odd_backend() -> pathlib.Path:
    return _path("LAB_ODD_BACKEND")


def guest_init() -> pathlib.Path:
    return _path("LAB_INIT")


def pci_selftest() -> pathlib.Path:
    return _path("LAB_PCI_SELFTEST")


def arm_init() -> pathlib.Path:
    return _path("LAB_ARM_INIT")


def arm_pci_selftest() -> pathlib.Path:
    return _path("LAB_ARM_PCI_SELFTEST")


def lab_kernel() -> Kernel:
    return Kernel(_path("LAB_KERNEL"), _path("LAB_MODULES"))


def patched_kernel() -> Kernel:
    """The lab kernel with the patches of guest/linux/."""
    return Kernel(_path("LAB_PATCHED_KERNEL"), _path("LAB_PATCHED_MODULES"))


def debug_kernel() -> Kernel:
    """The lab kernel with lockdep and KASAN, and the stock driver."""
    return Kernel(_path("LAB_DEBUG_KERNEL"), _path("LAB_DEBUG_MODULES"))


def debug_patched_kernel() -> Kernel:
    """The same with the patches of guest/linux/."""
    return Kernel(_path("LAB_DEBUG_PATCHED_KERNEL"), _path("LAB_DEBUG_PATCHED_MODULES"))


def debian_kernel() -> Kernel:
    return Kernel(_path("LAB_DEBIAN_KERNEL"), _path("LAB_DEBIAN_MODULES"))


def arm_kernel() -> Kernel:
    """The stock kernel for Arm."""
    return Kernel(_path("LAB_ARM_KERNEL"), _path("LAB_ARM_MODULES"))


def arm_patched_kernel() -> Kernel:
    """The same with the patches of guest/linux/."""
    return Kernel(_path("LAB_ARM_PATCHED_KERNEL"), _path("LAB_ARM_PATCHED_MODULES"))
