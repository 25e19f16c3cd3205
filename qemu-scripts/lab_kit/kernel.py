# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab kernel, one that checks itself and one for Arm, built from Debian's source package, and Debian's packaged
kernel."""

import functools
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from . import cache, cross, debian
from .cache import Missing, say

# The versions of Linux that the series and the tests are for, newest first.
SUPPORTED = ("7.3", "7.2")
GUEST = pathlib.Path(__file__).resolve().parents[2] / "guest"
FRAGMENT = GUEST / "kernel" / "lab.config"
DEBUG_FRAGMENT = GUEST / "kernel" / "debug.config"
ARM_FRAGMENT = GUEST / "kernel" / "arm64.config"
NESTING = GUEST / "kernel" / "arm-nesting.patch"
SERIES = GUEST / "linux"

# What a build on a bare machine wants: command or file, and the package that has it.
TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "perl": "perl",
    "cpio": "cpio",
    "rsync": "rsync",
    "/usr/include/libelf.h": "libelf-dev",
    "/usr/include/openssl/opensslv.h": "libssl-dev",
}

# So that the same source and options give the same bytes.
STAMP = ["KBUILD_BUILD_TIMESTAMP=2026-01-01", "KBUILD_BUILD_USER=lab", "KBUILD_BUILD_HOST=lab"]

PROGRESS_SECONDS = 20

DEBIAN_META = "linux-image-amd64"


@dataclass(frozen=True)
class Target:
    """What a kernel is built for, on x86_64."""

    # The image that make makes, and in which directory.
    image: str
    directory: str
    # Objects of a whole build, for the progress lines.
    objects: int
    # With _KERNEL and _MODULES: what names a kernel to take instead.
    environment: str
    # More for make, and more than `TOOLS`.
    variables: tuple[str, ...] = ()
    tools: tuple[tuple[str, str], ...] = ()


PC = Target("bzImage", "arch/x86/boot", 1430, "LAB")
ARM = Target(
    "Image",
    "arch/arm64/boot",
    570,
    "LAB_ARM",
    ("ARCH=arm64", f"CROSS_COMPILE={cross.PREFIX}"),
    tuple(cross.TOOLS.items()),
)


@functools.cache
def version() -> str:
    """The version of Linux that the lab's kernels are built from: the one in LAB_LINUX, or the newest supported one that
    Debian's archive has. Where the archive cannot be asked, the newest one that is unpacked already."""
    if chosen := os.environ.get("LAB_LINUX"):
        if chosen not in SUPPORTED:
            raise Missing(f"LAB_LINUX={chosen}: the lab builds Linux {' or '.join(SUPPORTED)}")
        return chosen
    try:
        found = debian.first([source_package(one) for one in SUPPORTED], debian.BACKPORTS)
        return SUPPORTED[[source_package(one) for one in SUPPORTED].index(found)]
    except Missing:
        if found := newest_in_cache():
            say(f"Linux {found}: taken from the cache, as the archive cannot be asked")
            return found
        raise


def newest_in_cache() -> str | None:
    """The newest supported version whose source is unpacked already."""
    return next((one for one in SUPPORTED if cache.complete(_source_entry(one))), None)


def source_package(version: str) -> str:
    """Debian's package with the source of a version of Linux."""
    return f"linux-source-{version}"


def _source_entry(version: str) -> str:
    return f"source-{cache.key(source_package(version), debian.BACKPORTS)}"


def fragment(file: pathlib.Path) -> str:
    """The options in `file`, and those in one beside it that are for this version of Linux alone: lab.config and
    lab-7.2.config."""
    own = file.with_name(f"{file.stem}-{version()}{file.suffix}")
    return file.read_text() + (own.read_text() if own.exists() else "")


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot: its image, and a directory with its modules."""

    image: pathlib.Path
    modules: pathlib.Path


def ensure_source() -> pathlib.Path:
    """The unpacked source of the lab kernel."""
    package = source_package(version())

    def make(path: pathlib.Path) -> None:
        debian.need_tools({"xz": "xz-utils"})
        debian.fetch(path, [package], debian.BACKPORTS, package)
        say(f"{package}: unpacking the source")
        archive = path / "root" / "usr" / "src" / f"{package}.tar.xz"
        debian.run(["tar", "-C", str(path), "-xf", str(archive)], package)
        (path / package).rename(path / "linux")
        shutil.rmtree(path / "root")

    return cache.entry(_source_entry(version()), make) / "linux"


def _settings(text: str) -> dict[str, str]:
    """The options of a configuration; of one that is there twice the last."""
    lines = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name: value for name, _, value in lines}


def _configure(target: Target, source: pathlib.Path, build: pathlib.Path, fragments: str) -> None:
    """tinyconfig with the fragments; every option of theirs must be in force afterwards."""
    build.mkdir(exist_ok=True)
    make = ["make", "-s", "-C", str(source), f"O={build}", *target.variables]
    debian.run([*make, "tinyconfig"], "kernel configuration")
    with (build / ".config").open("a") as config:
        config.write(fragments)
    debian.run([*make, "olddefconfig"], "kernel configuration")
    have = _settings((build / ".config").read_text())
    for name, value in _settings(fragments).items():
        if have.get(name, "n") != value:
            raise Missing(f"kernel configuration: {name}={value} of guest/kernel is not in force")


def _compile(name: str, target: Target, source: pathlib.Path, build: pathlib.Path, log: pathlib.Path) -> None:
    """Runs make with a progress line now and then."""
    jobs = (os.cpu_count() or 1) + 1
    command = ["make", "-C", str(source), f"O={build}", f"-j{jobs}", *target.variables, *STAMP, target.image, "modules"]
    started = last = time.monotonic()
    say(f"{name}: compiling with {jobs} jobs; some minutes, once")
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        objects = 0
        assert process.stdout
        for line in process.stdout:
            file.write(line)
            objects += line.startswith(("  CC ", "  AS "))
            if time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                say(f"{name}: {objects} of about {target.objects} files, {last - started:.0f} s")
    if process.returncode != 0:
        words = [line for line in log.read_text().splitlines() if "rror" in line]
        raise Missing(f"{name}: the build failed, see {log}: {words[0] if words else 'no message'}")


def _build(name: str, fragments: str, target: Target = PC) -> Kernel:
    """A kernel of ours, compiled once."""
    if os.uname().machine != "x86_64":
        wanted = f"{target.environment}_KERNEL and {target.environment}_MODULES"
        raise Missing(f"{name}: it is built on x86_64 only: set {wanted}")

    def make(path: pathlib.Path) -> None:
        debian.need_tools({**TOOLS, **dict(target.tools)})
        source = ensure_source()
        build = path / "build"
        _configure(target, source, build, fragments)
        _compile(name, target, source, build, path / "build.log")
        modules = path / "modules"
        modules.mkdir(exist_ok=True)
        for module in build.rglob("*.ko"):
            shutil.copy(module, modules / module.name)
        shutil.copy(build / target.directory / target.image, path / target.image)

    try:
        key = cache.key(source_package(version()), fragments, *STAMP, *target.variables)
        path = cache.entry(f"kernel-{key}", make, resume=True)
    except Missing as missing:
        raise Missing(f"{name}: {missing}".replace(f"{name}: {name}", name)) from missing
    return Kernel(path / target.image, path / "modules")


def _given(environment: str) -> Kernel | None:
    """The kernel that environment variables name."""
    if (image := os.environ.get(f"{environment}_KERNEL")) and (modules := os.environ.get(f"{environment}_MODULES")):
        return Kernel(pathlib.Path(image), pathlib.Path(modules))
    return None


@functools.cache
def ensure_kernel() -> Kernel:
    """The lab kernel: the one in LAB_KERNEL and LAB_MODULES, or one built from source once."""
    if given := _given(PC.environment):
        return given
    return _build("lab kernel", fragment(FRAGMENT))


@functools.cache
def ensure_debug_kernel() -> Kernel:
    """The lab kernel with its own checks: lockdep, KASAN and others. Slow."""
    return _build("debug kernel", fragment(FRAGMENT) + fragment(DEBUG_FRAGMENT))


@functools.cache
def ensure_arm_kernel() -> Kernel:
    """The stock kernel for Arm: the one in LAB_ARM_KERNEL and LAB_ARM_MODULES, or one compiled across, once."""
    if given := _given(ARM.environment):
        return given
    return _build("kernel for Arm", fragment(ARM_FRAGMENT), ARM)


def tree() -> tuple[pathlib.Path, pathlib.Path]:
    """Source and build directories of the lab kernel, to build other modules against."""
    return ensure_source(), ensure_kernel().image.parent / "build"


@functools.cache
def ensure_patched_kernel() -> Kernel:
    """The lab kernel with the series of guest/linux/, or the one in LAB_PATCHED_KERNEL and LAB_PATCHED_MODULES."""
    if given := _given("LAB_PATCHED"):
        return given
    build = tree()[1]
    if not build.is_dir():
        raise Missing(f"patched kernel: {build} does not exist: set LAB_PATCHED_KERNEL too, or unset LAB_KERNEL")
    return _patched("patched kernel", build)


@functools.cache
def ensure_debug_patched_kernel() -> Kernel:
    """The same with the debug kernel's checks."""
    return _patched("patched debug kernel", ensure_debug_kernel().image.parent / "build")


@functools.cache
def ensure_arm_patched_kernel() -> Kernel:
    """The kernel for Arm with the series, or the one in LAB_ARM_PATCHED_KERNEL and LAB_ARM_PATCHED_MODULES."""
    if given := _given("LAB_ARM_PATCHED"):
        return given
    return _patched("patched kernel for Arm", ensure_arm_kernel().image.parent / "build", ARM)


@functools.cache
def ensure_arm_nesting_kernel() -> Kernel:
    """The kernel for Arm as a host that nests page tables on QEMU's SMMUv3: the stock one, with a patch for the lab alone.
    Or the one in LAB_ARM_NESTING_KERNEL and LAB_ARM_NESTING_MODULES."""
    if given := _given("LAB_ARM_NESTING"):
        return given
    return _patched("nesting kernel for Arm", ensure_arm_kernel().image.parent / "build", ARM, [NESTING])


def _patched(
    name: str, build: pathlib.Path, target: Target = PC, patches: Sequence[pathlib.Path] | None = None
) -> Kernel:
    """A kernel that is built already, with patches: those of the series, or others."""
    files = [SERIES / "build", *(patches or sorted(SERIES.glob("*.patch")))]

    def make(path: pathlib.Path) -> None:
        debian.need_tools({**TOOLS, **dict(target.tools), "git": "git", "unshare": "util-linux"})
        say(f"{name}: compiling what the patches change; a minute or two, once")
        # The script takes the patches that it is beside.
        beside = path / "patches"
        beside.mkdir()
        for file in files:
            shutil.copy(file, beside)
        trees = [str(tree) for tree in (ensure_source(), build, path)]
        debian.run([str(beside / "build"), *trees, *target.variables, *STAMP], name)

    content = [file.read_text() for file in files]
    path = cache.entry(f"patched-{cache.key(build.parent.name, *content)}", make)
    return Kernel(path / target.image, path / "modules")


@functools.cache
def ensure_debian_kernel() -> Kernel:
    """Debian's packaged kernel: the one in LAB_DEBIAN_KERNEL and LAB_DEBIAN_MODULES, or the fetched one."""
    if given := _given("LAB_DEBIAN"):
        return given

    def make(path: pathlib.Path) -> None:
        package = debian.meta(DEBIAN_META, debian.STABLE, "linux-image-")
        debian.fetch(path, [package], debian.STABLE, f"Debian's packaged kernel ({package})")

    try:
        path = cache.entry(f"debian-kernel-{cache.key(DEBIAN_META, debian.STABLE)}", make)
    except Missing as missing:
        raise Missing(f"Debian's packaged kernel: {missing}") from missing
    root = path / "root"
    images = sorted(root.glob("boot/vmlinuz-*"))
    if not images:
        raise Missing(f"Debian's packaged kernel: no image in {root / 'boot'}")
    release = images[0].name.removeprefix("vmlinuz-")
    return Kernel(images[0], root / "usr" / "lib" / "modules" / release)


def release(image: pathlib.Path) -> str:
    """The release of a kernel that was built here; of another one, where it is."""
    file = image.parent / "build" / "include" / "config" / "kernel.release"
    return file.read_text().strip() if file.exists() else str(image)
