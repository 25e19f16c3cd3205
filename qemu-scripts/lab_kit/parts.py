# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What the suites stand on, as jobs: kernels, QEMU, the back-end in its kinds, the guests' programs.

Each is made when a suite needs it, once, and says in `environment` where it is: the LAB_* variables that tests read.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

from . import cache, cargo, cross, debian, kernel, libvirt, processes, programs, qemu, selftest
from .cache import Missing
from .cargo import ROOT, BuildFailed
from .lanes import Job
from .tally import Tally

LAB = [sys.executable, str(ROOT / "qemu-scripts" / "lab")]

# The order in which free lanes take what is ready.
# What rotates comes last, so that a run that has no time left has run all that is in every run.
KERNELS, CHECKS, BUILDS, UNIT, HOST, TESTS, TURNS = range(7)

# A kernel on a slow or busy machine, or one that another process is making.
KERNEL_SECONDS = 3600
FETCH_SECONDS = 1200


class Parts:
    """The jobs that make what is needed."""

    def __init__(self, tally: Tally):
        self._tally = tally
        self.environment: dict[str, str] = {}

    def _lab(self, arguments: list[str], seconds: float) -> None:
        """Runs qemu-scripts/lab, which says in its last line what is missing."""
        last = "no output"

        def take(line: str) -> None:
            nonlocal last
            last = line or last
            if line.startswith("lab: "):
                self._tally.show(line)

        ended = processes.run([*LAB, *arguments], take, seconds)
        if ended.status != 0:
            raise Missing(f"{' '.join(arguments)}: {ended.late or last.removeprefix('lab: ')}")

    # What comes from the archive.

    @functools.cached_property
    def version(self) -> Job:
        """Which Linux it is, for all that follows."""

        def run() -> None:
            os.environ["LAB_LINUX"] = kernel.version()
            self._tally.show(f"lab: kernels of Linux {os.environ['LAB_LINUX']}")

        # First of all, as the kernels are what takes longest.
        return Job("the version of Linux", run, KERNELS, 2000)

    @functools.cached_property
    def source(self) -> Job:
        """The source of that Linux, which the kernels unpack for themselves if nothing else has."""

        def run() -> None:
            kernel.ensure_source()

        return Job("the source of Linux", run, KERNELS, 500, needs=(self.version,), makes=True)

    @functools.cached_property
    def qemu(self) -> Job:
        def run() -> None:
            self._lab(["qemu"], FETCH_SECONDS)
            self.environment["LAB_QEMU"] = " ".join(qemu.ensure_qemu())

        return Job("QEMU", run, KERNELS, 20, makes=True)

    @functools.cached_property
    def arm_qemu(self) -> Job:
        def run() -> None:
            self._lab(["arm-qemu"], FETCH_SECONDS)
            self.environment["LAB_ARM_QEMU"] = " ".join(qemu.ensure_arm_qemu())

        return Job("QEMU for Arm", run, KERNELS, 10, makes=True)

    @functools.cached_property
    def libvirt(self) -> Job:
        def run() -> None:
            self._lab(["libvirt"], FETCH_SECONDS)
            self.environment["LAB_LIBVIRT"] = str(libvirt.ensure_libvirt())

        return Job("libvirt", run, KERNELS, 10, makes=True)

    @functools.cached_property
    def debian_kernel(self) -> Job:
        def run() -> None:
            self._lab(["debian-kernel"], FETCH_SECONDS)
            self._say("LAB_DEBIAN", kernel.ensure_debian_kernel())

        return Job("Debian's packaged kernel", run, KERNELS, 20, makes=True)

    def kernels_are_there(self) -> bool:
        """Whether no run has to wait long for kernels: those that most tests are on are in the cache."""
        try:
            with cache.closed():
                kernel.ensure_kernel()
                kernel.ensure_arm_kernel()
        except Missing:
            return False
        return True

    # Kernels: those that most tests wait for come first, the debug kernel last.

    def _say(self, name: str, found: kernel.Kernel) -> None:
        self.environment |= {f"{name}_KERNEL": str(found.image), f"{name}_MODULES": str(found.modules)}

    def _kernel(
        self,
        name: str,
        command: str,
        variable: str,
        ensure: Callable[[], kernel.Kernel],
        weight: float,
        needs: tuple[Job, ...],
        after: tuple[Job, ...] = (),
    ) -> Job:
        def run() -> None:
            self._lab([command], KERNEL_SECONDS)
            self._say(variable, ensure())

        needs, after = (self.version, *needs), (self.source, *after)
        return Job(name, run, KERNELS, weight, needs=needs, after=after, holds="the lab's kernels", makes=True)

    @functools.cached_property
    def kernel(self) -> Job:
        return self._kernel("lab kernel", "kernel", "LAB", kernel.ensure_kernel, 315, ())

    @functools.cached_property
    def patched_kernel(self) -> Job:
        ensure = kernel.ensure_patched_kernel
        return self._kernel("patched kernel", "patched-kernel", "LAB_PATCHED", ensure, 30, (self.kernel,))

    @functools.cached_property
    def arm_kernel(self) -> Job:
        ensure, after = kernel.ensure_arm_kernel, (self.kernel, self.patched_kernel)
        return self._kernel("kernel for Arm", "arm-kernel", "LAB_ARM", ensure, 130, (), after)

    @functools.cached_property
    def arm_patched_kernel(self) -> Job:
        ensure, needs = kernel.ensure_arm_patched_kernel, (self.arm_kernel,)
        return self._kernel("patched kernel for Arm", "arm-patched-kernel", "LAB_ARM_PATCHED", ensure, 30, needs)

    @functools.cached_property
    def arm_nesting_kernel(self) -> Job:
        ensure, needs = kernel.ensure_arm_nesting_kernel, (self.arm_kernel,)
        job = self._kernel("nesting kernel for Arm", "arm-nesting-kernel", "LAB_ARM_NESTING", ensure, 30, needs)
        return self._for_few(job)

    def _for_few(self, job: Job) -> Job:
        """A job that tests which rotate need alone: nothing waits for it that is in every run."""
        job.rank = TURNS
        return job

    @functools.cached_property
    def debug_kernels(self) -> Job:
        after = (self.kernel, self.patched_kernel, self.arm_kernel, self.arm_patched_kernel)
        ensure = kernel.ensure_debug_patched_kernel
        job = self._kernel("debug kernel", "debug-kernel", "LAB_DEBUG_PATCHED", ensure, 1200, (), after)
        both = job.run

        def run() -> None:
            both()
            self._say("LAB_DEBUG", kernel.ensure_debug_kernel())

        job.run = run
        return job

    # What is built here. Cargo's directories are each for one build at a time.

    def _cargo(
        self,
        name: str,
        variable: str,
        build: Callable[[Callable[[str], None]], Path],
        weight: float,
        holds: str = "target/debug",
    ) -> Job:
        def run() -> None:
            said: list[str] = []
            try:
                self.environment[variable] = str(build(said.append))
            except BuildFailed as failure:
                raise BuildFailed(str(failure), said) from failure

        return Job(name, run, BUILDS, weight, holds=holds, makes=True)

    @functools.cached_property
    def backend(self) -> Job:
        return self._cargo("build of the back-end", "LAB_BACKEND", cargo.backend, 80, "target/release")

    @functools.cached_property
    def test_backend(self) -> Job:
        return self._cargo("build of the back-end for mock devices", "LAB_TEST_BACKEND", cargo.test_backend, 20)

    @functools.cached_property
    def odd_backend(self) -> Job:
        return self._cargo("build of the back-end with odd bits", "LAB_ODD_BACKEND", cargo.odd_backend, 20)

    @functools.cached_property
    def cargo_deb(self) -> Job:
        """What makes packages: it is built from source, which takes minutes."""

        def build(show: Callable[[str], None]) -> Path:
            # It asks which libraries the program needs.
            debian.need_tools({"dpkg-shlibdeps": "dpkg-dev"})
            return cargo.deb(show)

        return self._cargo("build of cargo-deb", "LAB_CARGO_DEB", build, 150, "")

    @functools.cached_property
    def host_suite(self) -> Job:
        build = functools.partial(cargo.test_binary, "host_suite")
        return self._cargo("build of the host suite", "LAB_HOST_SUITE", build, 20)

    @functools.cached_property
    def arm_suite(self) -> Job:
        """The tests of the iommufd host for Arm, compiled across."""
        build = functools.partial(cargo.arm_test_binary, "arm_suite")
        return self._for_few(self._cargo("build of the suite for Arm", "LAB_ARM_SUITE", build, 100, "target/arm"))

    def _init(self, name: str, variable: str, make: Callable[[Callable[[str], None]], Path]) -> Job:
        def run() -> None:
            said: list[str] = []
            try:
                self.environment[variable] = str(make(said.append))
            except BuildFailed as failure:
                raise BuildFailed(str(failure), said) from failure

        return Job(name, run, BUILDS, 5, makes=True)

    @functools.cached_property
    def init(self) -> Job:
        """The program that is init in the guests."""
        return self._init("build of the guests' init", "LAB_INIT", programs.guest_init)

    @functools.cached_property
    def arm_init(self) -> Job:
        """The same for Arm."""

        def make(show: Callable[[str], None]) -> Path:
            # They put the IOMMU into the machine's device tree.
            debian.need_tools({"dtc": "device-tree-compiler", "fdtoverlay": "device-tree-compiler"})
            return programs.arm_guest_init(show)

        return self._init("build of the guests' init for Arm", "LAB_ARM_INIT", make)

    @functools.cached_property
    def selftest(self) -> Job:
        """The kernel's own tests of PCI endpoints and of VFIO."""

        def run() -> None:
            self.environment["LAB_PCI_SELFTEST"] = str(selftest.ensure_pci_selftest())
            self.environment["LAB_VFIO_SELFTESTS"] = str(selftest.ensure_vfio_selftests())

        return Job("the kernel's tests of PCI endpoints and VFIO", run, BUILDS, 15, needs=(self.source,))

    @functools.cached_property
    def arm_selftest(self) -> Job:
        def run() -> None:
            self.environment["LAB_ARM_PCI_SELFTEST"] = str(selftest.ensure_pci_selftest(cross.COMPILER))

        return Job("the kernel's test of PCI endpoints for Arm", run, BUILDS, 2, needs=(self.source,))

    def versions(self) -> str:
        """What Linux and which QEMU a run stood on."""
        have, words = self.environment, []
        if image := have.get("LAB_KERNEL"):
            words.append(f"Linux {kernel.release(Path(image))}")
        if modules := have.get("LAB_DEBIAN_MODULES"):
            words.append(f"Debian's {Path(modules).name}")
        if "LAB_QEMU" in have:
            words.append(qemu.version())
        return ", ".join(words)
