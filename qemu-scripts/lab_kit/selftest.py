# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The kernel's own tests, compiled from its source as they are."""

import functools
import pathlib

from . import cache, cross, debian
from .kernel import ensure_source, source_package, version

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
