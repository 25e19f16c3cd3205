# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where QEMU, the kernels, the back-end and the guest's program are: environment variables say so.

| variable | what |
|---|---|
| `VDI_QEMU` | the command that runs QEMU 11.1 |
| `VDI_KERNEL`, `VDI_MODULES` | the lab kernel and the directory of its modules |
| `VDI_PATCHED_KERNEL`, `VDI_PATCHED_MODULES` | the lab kernel with the patches of guest/linux/, likewise |
| `VDI_DEBUG_KERNEL`, `VDI_DEBUG_MODULES` | the lab kernel with lockdep and KASAN, likewise |
| `VDI_DEBUG_PATCHED_KERNEL`, `VDI_DEBUG_PATCHED_MODULES` | that with the patches, likewise |
| `VDI_DEBIAN_KERNEL`, `VDI_DEBIAN_MODULES` | Debian's packaged kernel, likewise |
| `VDI_ARM_QEMU`, `VDI_ARM_KERNEL`, `VDI_ARM_MODULES` | QEMU for Arm, a kernel for it and its modules |
| `VDI_ARM_PATCHED_KERNEL`, `VDI_ARM_PATCHED_MODULES` | that kernel with the patches, likewise |
| `VDI_BACKEND` | the program under test |
| `VDI_TEST_BACKEND` | the same with endpoints on the kernel's mock bus |
| `VDI_ODD_BACKEND` | the same that sends what drivers have to ignore |
| `VDI_PCI_SELFTEST` | the kernel's own test of PCI endpoints, tools/testing/selftests/pci_endpoint |
| `VDI_INIT` | the guest's program, made by `make -C guest` |
| `VDI_ARM_PCI_SELFTEST`, `VDI_ARM_INIT` | both for Arm |
| `VDI_PATIENCE` | how many times as long as usual to wait for a guest |
| `VDI_DISK_SECONDS` | how long the nested suite writes and reads a passed-through disk |
| `VDI_KEEP` | a directory for logs; without it they are shown for failed tests only |
"""

import os
import pathlib
import shlex
import sys
from dataclasses import dataclass

# The lab's own code: the packing of an initramfs is there.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3] / "qemu-scripts"))

from vdi_lab import initramfs, trouble  # noqa: E402

__all__ = [
    "Kernel", "Missing", "arm_init", "arm_kernel", "arm_patched_kernel", "arm_pci_selftest", "arm_qemu", "backend",
    "debian_kernel", "debug_kernel", "debug_patched_kernel", "guest_init", "initramfs", "lab_kernel", "odd_backend",
    "patched_kernel", "pci_selftest", "qemu", "test_backend", "trouble",
]  # fmt: skip


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
    return _command("VDI_QEMU")


def arm_qemu() -> list[str]:
    return _command("VDI_ARM_QEMU")


def backend() -> pathlib.Path:
    return _path("VDI_BACKEND")


def test_backend() -> pathlib.Path:
    return _path("VDI_TEST_BACKEND")


def odd_backend() -> pathlib.Path:
    return _path("VDI_ODD_BACKEND")


def guest_init() -> pathlib.Path:
    return _path("VDI_INIT")


def pci_selftest() -> pathlib.Path:
    return _path("VDI_PCI_SELFTEST")


def arm_init() -> pathlib.Path:
    return _path("VDI_ARM_INIT")


def arm_pci_selftest() -> pathlib.Path:
    return _path("VDI_ARM_PCI_SELFTEST")


def lab_kernel() -> Kernel:
    return Kernel(_path("VDI_KERNEL"), _path("VDI_MODULES"))


def patched_kernel() -> Kernel:
    """The lab kernel with the patches of guest/linux/."""
    return Kernel(_path("VDI_PATCHED_KERNEL"), _path("VDI_PATCHED_MODULES"))


def debug_kernel() -> Kernel:
    """The lab kernel with lockdep and KASAN, and the stock driver."""
    return Kernel(_path("VDI_DEBUG_KERNEL"), _path("VDI_DEBUG_MODULES"))


def debug_patched_kernel() -> Kernel:
    """The same with the patches of guest/linux/."""
    return Kernel(_path("VDI_DEBUG_PATCHED_KERNEL"), _path("VDI_DEBUG_PATCHED_MODULES"))


def debian_kernel() -> Kernel:
    return Kernel(_path("VDI_DEBIAN_KERNEL"), _path("VDI_DEBIAN_MODULES"))


def arm_kernel() -> Kernel:
    """The stock kernel for Arm."""
    return Kernel(_path("VDI_ARM_KERNEL"), _path("VDI_ARM_MODULES"))


def arm_patched_kernel() -> Kernel:
    """The same with the patches of guest/linux/."""
    return Kernel(_path("VDI_ARM_PATCHED_KERNEL"), _path("VDI_ARM_PATCHED_MODULES"))
