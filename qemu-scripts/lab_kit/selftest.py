# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The kernel's own tests, compiled from its source as they are, and a driver that the lab's kernels are without."""

import functools
import pathlib
import shutil

from . import cache, cross, debian
from .kernel import ARM, SERIES, ensure_arm_kernel, ensure_source, source_package, version

PCI = "pci_endpoint"

# The driver of software functions for the tests of VFIO. It takes the place of one that no test here has a device for:
# their library has the drivers in a list.
VFIO = "vfio"
VFIO_DRIVER = SERIES / "selftests" / "fault_engine.c"
VFIO_DRIVER_INSTEAD = "ioat"
VFIO_LAB = SERIES / "selftests" / "lab.c"
VFIO_TESTS = (
    "vfio_dma_mapping_mmio_test", "vfio_dma_mapping_test", "vfio_iommufd_setup_test", "vfio_pci_device_test",
    "vfio_pci_driver_test",
)  # fmt: skip
VFIO_TOOLS = {"gcc": "gcc", "make": "make", "/usr/include/uuid/uuid.h": "uuid-dev"}


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


@functools.cache
def ensure_vfio_selftests() -> pathlib.Path:
    """The tests of VFIO, with a driver for software functions: a directory with a static program for each."""

    def make(path: pathlib.Path) -> None:
        debian.need_tools(VFIO_TOOLS)
        source = ensure_source()
        tests = source / "tools" / "testing" / "selftests"
        library = tests / VFIO / "lib"
        # Those of the kernel that is tested, as the machine's own are older.
        headers = path / "headers"
        debian.run(["make", "-s", "-C", str(source), f"O={headers}", "headers"], "the kernel's headers")
        others = (file for file in library.rglob("*.c") if file.stem != VFIO_DRIVER_INSTEAD)
        flags = [
            "-O2", "-static", "-pthread", "-D_GNU_SOURCE=", f"-I{tests}", f"-isystem{headers / 'usr' / 'include'}",
            f"-I{library / 'include'}", f"-I{source / 'tools' / 'include'}",
            f"-Wl,--defsym={VFIO_DRIVER_INSTEAD}_ops={VFIO_DRIVER.stem}_ops", "-Wl,--wrap=poll,--wrap=mmap",
        ]  # fmt: skip
        files = [*map(str, sorted(others)), str(VFIO_DRIVER), str(VFIO_LAB)]
        for test in VFIO_TESTS:
            output, main = path / test, tests / VFIO / f"{test}.c"
            debian.run(["gcc", *flags, "-o", str(output), str(main), *files, "-luuid"], f"VFIO selftests: {test}")
        shutil.rmtree(headers)

    own = (file.read_text() for file in (VFIO_DRIVER, VFIO_LAB))
    return cache.entry(f"selftest-{cache.key(VFIO, *VFIO_TESTS, source_package(version()), debian.BACKPORTS, *own)}", make)
