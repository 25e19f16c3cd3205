# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The kernel's own tests, compiled from its source as they are, and a driver that the lab's kernels are without."""

import functools
import pathlib
import shutil

from . import cache, cross, debian
from .kernel import ARM, ensure_arm_kernel, ensure_source, source_package, version

PCI = "pci_endpoint"


@functools.cache
def ensure_pci_selftest(compiler: str = "gcc") -> pathlib.Path:
    """The test of the driver pci_endpoint_test: one static program."""

    def make(path: pathlib.Path) -> None:
        debian.need_tools(cross.PROGRAM_TOOLS if compiler == cross.COMPILER else {"gcc": "gcc"})
        tests = ensure_source() / "tools" / "testing" / "selftests"
        source = tests / PCI / f"{PCI}_test.c"
        output = path / f"{PCI}_test"
        debian.run([compiler, "-O2", "-static", f"-I{tests}", "-o", str(output), str(source)], "PCI endpoint selftest")

    entry = cache.entry(f"selftest-{cache.key(PCI, source_package(version()), debian.BACKPORTS, compiler)}", make)
    return entry / f"{PCI}_test"


@functools.cache
def ensure_arm_mmio_driver() -> pathlib.Path:
    """The module virtio_mmio for the stock kernel for Arm."""
    build = ensure_arm_kernel().image.parent / "build"

    def make(path: pathlib.Path) -> None:
        debian.need_tools({**cross.TOOLS, "make": "make"})
        shutil.copy(ensure_source() / "drivers" / "virtio" / "virtio_mmio.c", path)
        (path / "Makefile").write_text("obj-m := virtio_mmio.o\n")
        debian.run(["make", "-C", str(build), f"M={path}", *ARM.variables, "modules"], "virtio_mmio for Arm")

    return cache.entry(f"virtio-mmio-{cache.key(build.parent.name)}", make) / "virtio_mmio.ko"
