# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Where QEMU, the kernels, the back-end and the guest's program are.

QEMU and kernels are found in the lab's cache, and are never fetched or built from here: `Missing` says which command of
qemu-scripts/lab does that. The back-end and the guest's program are built whenever their sources have changed. An
environment variable names another one:

| variable | what |
|---|---|
| `LAB_QEMU` | the command that runs QEMU 11.1 |
| `LAB_KERNEL`, `LAB_MODULES` | the lab kernel and the directory of its modules |
| `LAB_PATCHED_KERNEL`, `LAB_PATCHED_MODULES` | the lab kernel with the patches of guest/linux/, likewise |
| `LAB_DEBUG_KERNEL`, `LAB_DEBUG_MODULES` | the lab kernel with lockdep and KASAN, likewise |
| `LAB_DEBUG_PATCHED_KERNEL`, `LAB_DEBUG_PATCHED_MODULES` | that with the patches, likewise |
| `LAB_DEBIAN_KERNEL`, `LAB_DEBIAN_MODULES` | Debian's packaged kernel, likewise |
| `LAB_ARM_QEMU`, `LAB_ARM_KERNEL`, `LAB_ARM_MODULES` | QEMU for Arm, a kernel for it and its modules |
| `LAB_ARM_NESTING_KERNEL`, `LAB_ARM_NESTING_MODULES` | that kernel as a host that nests page tables, likewise |
| `LAB_ARM_SUITE` | the tests of the iommufd host on it, compiled for Arm |
| `LAB_ARM_PATCHED_KERNEL`, `LAB_ARM_PATCHED_MODULES` | that kernel with the patches, likewise |
| `LAB_BACKEND` | the program under test |
| `LAB_TEST_BACKEND` | the same with endpoints on the kernel's mock bus |
| `LAB_ODD_BACKEND` | the same that sends what drivers have to ignore |
| `LAB_PCI_SELFTEST` | the kernel's own test of PCI endpoints, tools/testing/selftests/pci_endpoint |
| `LAB_VFIO_SELFTESTS` | a directory with those of VFIO, tools/testing/selftests/vfio |
| `LAB_INIT` | the guest's program, made by `make -C guest` |
| `LAB_ARM_PCI_SELFTEST`, `LAB_ARM_INIT` | both for Arm |
| `LAB_ARM_MMIO_DRIVER` | the module virtio_mmio for the kernel for Arm |
| `LAB_LIBVIRT` | the root directory of a system with libvirt and systemd, for tests of what is installed |
| `LAB_LINUX` | the version of Linux that the kernels are built from; the newest one in the cache |
| `LAB_PATIENCE` | how many times as long as usual to wait for a guest |
| `LAB_DISK_SECONDS` | how long the nested suite writes and reads a passed-through disk |
| `LAB_KEEP` | a directory for logs; without it they are shown for failed tests only |
"""

import functools
import os
import pathlib
import shlex
import shutil
from collections.abc import Callable
from typing import TypeVar

from .. import cache, cargo, cross, programs, selftest
from .. import kernel as kernels
from .. import qemu as emulators
from ..cache import Missing
from ..kernel import Kernel

__all__ = [
    "Kernel", "Missing", "arm_init", "arm_kernel", "arm_mmio_driver", "arm_nesting_kernel", "arm_patched_kernel", "arm_pci_selftest",
    "arm_qemu", "arm_suite", "backend", "debian_kernel", "debug_kernel", "debug_patched_kernel", "guest_init", "lab_kernel", "odd_backend",
    "patched_kernel", "pci_selftest", "qemu", "test_backend", "vfio_selftests",
]  # fmt: skip

Found = TypeVar("Found")


def _path(variable: str) -> pathlib.Path | None:
    """The file that an environment variable names."""
    if not (value := os.environ.get(variable)):
        return None
    path = pathlib.Path(value)
    if not path.exists():
        raise Missing(f"{variable}: {path} does not exist")
    return path


def _in_cache(what: str, command: str, ensure: Callable[[], Found]) -> Found:
    """What `ensure` finds without making it."""
    _choose_linux()
    try:
        with cache.closed():
            return ensure()
    except Missing as missing:
        raise Missing(f"{what}: {missing}: run qemu-scripts/lab {command}") from missing


def _choose_linux() -> None:
    """Takes the newest version of Linux that is in the cache, for programs that are started from here too. Only those who
    make a kernel ask Debian's archive."""
    os.environ.setdefault("LAB_LINUX", kernels.newest_in_cache() or kernels.SUPPORTED[0])


def _kernel(variable: str, what: str, command: str, ensure: Callable[[], Kernel]) -> Kernel:
    image, modules = _path(f"{variable}_KERNEL"), _path(f"{variable}_MODULES")
    return Kernel(image, modules) if image and modules else _in_cache(what, command, ensure)


def _need(tools: dict[str, str]) -> None:
    """Raises `Missing` for commands or files that are not there; a test installs nothing."""
    if missing := sorted({package for tool, package in tools.items() if not shutil.which(tool) and not os.path.exists(tool)}):
        raise Missing(f"tools are missing: apt-get install {' '.join(missing)}")


def qemu() -> list[str]:
    return shlex.split(os.environ.get("LAB_QEMU", "")) or _in_cache("QEMU", "fetch", emulators.ensure_qemu)


def arm_qemu() -> list[str]:
    given = shlex.split(os.environ.get("LAB_ARM_QEMU", ""))
    return given or _in_cache("QEMU for Arm", "arm-qemu", emulators.ensure_arm_qemu)


@functools.cache
def backend() -> pathlib.Path:
    return _path("LAB_BACKEND") or cargo.backend()


@functools.cache
def test_backend() -> pathlib.Path:
    return _path("LAB_TEST_BACKEND") or cargo.test_backend()


@functools.cache
def odd_backend() -> pathlib.Path:
    return _path("LAB_ODD_BACKEND") or cargo.odd_backend()


@functools.cache
def guest_init() -> pathlib.Path:
    if given := _path("LAB_INIT"):
        return given
    _need({"gcc": "gcc", "make": "make"})
    return programs.guest_init()


@functools.cache
def pci_selftest() -> pathlib.Path:
    if given := _path("LAB_PCI_SELFTEST"):
        return given
    _need({"gcc": "gcc"})
    _in_cache("the kernel's source", "fetch", kernels.ensure_source)
    return selftest.ensure_pci_selftest()


@functools.cache
def vfio_selftests() -> pathlib.Path:
    """The directory of the kernel's own tests of VFIO."""
    if given := _path("LAB_VFIO_SELFTESTS"):
        return given
    _need(selftest.VFIO_TOOLS)
    _in_cache("the kernel's source", "fetch", kernels.ensure_source)
    return selftest.ensure_vfio_selftests()


@functools.cache
def arm_init() -> pathlib.Path:
    # dtc and fdtoverlay put the IOMMU into the machine's device tree.
    _need({"dtc": "device-tree-compiler", "fdtoverlay": "device-tree-compiler"})
    if given := _path("LAB_ARM_INIT"):
        return given
    _need({**cross.PROGRAM_TOOLS, "make": "make"})
    return programs.arm_guest_init()


@functools.cache
def arm_pci_selftest() -> pathlib.Path:
    if given := _path("LAB_ARM_PCI_SELFTEST"):
        return given
    _need(cross.PROGRAM_TOOLS)
    _in_cache("the kernel's source", "fetch", kernels.ensure_source)
    return selftest.ensure_pci_selftest(cross.COMPILER)


@functools.cache
def arm_mmio_driver() -> pathlib.Path:
    """The module virtio_mmio for the stock kernel for Arm, which has none."""
    if given := _path("LAB_ARM_MMIO_DRIVER"):
        return given
    _need({**cross.TOOLS, "make": "make"})
    _in_cache("the kernel for Arm", "arm-kernel", kernels.ensure_arm_kernel)
    return selftest.ensure_arm_mmio_driver()


@functools.cache
def arm_suite() -> pathlib.Path:
    """The tests of the iommufd host for Arm."""
    if given := _path("LAB_ARM_SUITE"):
        return given
    _need(cross.PROGRAM_TOOLS)
    with cache.closed():
        return cargo.arm_test_binary("arm_suite")


def lab_kernel() -> Kernel:
    return _kernel("LAB", "the lab kernel", "fetch", kernels.ensure_kernel)


def patched_kernel() -> Kernel:
    """The lab kernel with the patches of guest/linux/."""
    return _kernel("LAB_PATCHED", "the patched kernel", "patched-kernel", kernels.ensure_patched_kernel)


def debug_kernel() -> Kernel:
    """The lab kernel with lockdep and KASAN, and the stock driver."""
    return _kernel("LAB_DEBUG", "the debug kernel", "debug-kernel", kernels.ensure_debug_kernel)


def debug_patched_kernel() -> Kernel:
    """The same with the patches of guest/linux/."""
    ensure = kernels.ensure_debug_patched_kernel
    return _kernel("LAB_DEBUG_PATCHED", "the patched debug kernel", "debug-kernel", ensure)


def debian_kernel() -> Kernel:
    return _kernel("LAB_DEBIAN", "Debian's kernel", "fetch", kernels.ensure_debian_kernel)


def arm_kernel() -> Kernel:
    """The stock kernel for Arm."""
    return _kernel("LAB_ARM", "the kernel for Arm", "arm-kernel", kernels.ensure_arm_kernel)


def arm_patched_kernel() -> Kernel:
    """The same with the patches of guest/linux/."""
    ensure = kernels.ensure_arm_patched_kernel
    return _kernel("LAB_ARM_PATCHED", "the patched kernel for Arm", "arm-patched-kernel", ensure)


def arm_nesting_kernel() -> Kernel:
    """The kernel for Arm as a host that nests page tables."""
    ensure = kernels.ensure_arm_nesting_kernel
    return _kernel("LAB_ARM_NESTING", "the nesting kernel for Arm", "arm-nesting-kernel", ensure)
