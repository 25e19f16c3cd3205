# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab kernel and one that checks itself, built from Debian's source package, and Debian's packaged kernel."""

import functools
import os
import pathlib
import shutil
import subprocess
import time
from dataclasses import dataclass

from . import cache, debian
from .cache import Missing, say

SOURCE = "linux-source-7.2"
GUEST = pathlib.Path(__file__).resolve().parents[2] / "guest"
FRAGMENT = GUEST / "kernel" / "lab.config"
DEBUG_FRAGMENT = GUEST / "kernel" / "debug.config"
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

# Objects of a whole build, for the progress lines.
OBJECTS = 1430
PROGRESS_SECONDS = 20

DEBIAN_META = "linux-image-amd64"


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot: its image, and a directory with its modules."""

    image: pathlib.Path
    modules: pathlib.Path


def ensure_source() -> pathlib.Path:
    """The unpacked source of the lab kernel."""

    def make(path: pathlib.Path) -> None:
        debian.need_tools({"xz": "xz-utils"})
        debian.fetch(path, [SOURCE], debian.BACKPORTS, SOURCE)
        say(f"{SOURCE}: unpacking the source")
        archive = path / "root" / "usr" / "src" / f"{SOURCE}.tar.xz"
        debian.run(["tar", "-C", str(path), "-xf", str(archive)], SOURCE)
        (path / SOURCE).rename(path / "linux")
        shutil.rmtree(path / "root")

    return cache.entry(f"source-{cache.key(SOURCE, debian.BACKPORTS)}", make) / "linux"


def _settings(text: str) -> dict[str, str]:
    """The options of a configuration; of one that is there twice the last."""
    lines = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
    return {name: value for name, _, value in lines}


def _configure(source: pathlib.Path, build: pathlib.Path, fragments: str) -> None:
    """tinyconfig with the fragments; every option of theirs must be in force afterwards."""
    build.mkdir(exist_ok=True)
    make = ["make", "-s", "-C", str(source), f"O={build}"]
    debian.run([*make, "tinyconfig"], "kernel configuration")
    with (build / ".config").open("a") as config:
        config.write(fragments)
    debian.run([*make, "olddefconfig"], "kernel configuration")
    have = _settings((build / ".config").read_text())
    for name, value in _settings(fragments).items():
        if have.get(name, "n") != value:
            raise Missing(f"kernel configuration: {name}={value} of guest/kernel is not in force")


def _compile(name: str, source: pathlib.Path, build: pathlib.Path, log: pathlib.Path) -> None:
    """Runs make with a progress line now and then."""
    jobs = (os.cpu_count() or 1) + 1
    command = ["make", "-C", str(source), f"O={build}", f"-j{jobs}", *STAMP, "bzImage", "modules"]
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
                say(f"{name}: {objects} of about {OBJECTS} files, {last - started:.0f} s")
    if process.returncode != 0:
        words = [line for line in log.read_text().splitlines() if "rror" in line]
        raise Missing(f"{name}: the build failed, see {log}: {words[0] if words else 'no message'}")


def _build(name: str, fragments: str) -> Kernel:
    """A kernel of ours, compiled once."""
    if os.uname().machine != "x86_64":
        raise Missing(f"{name}: it is built for x86_64 on x86_64: set VDI_KERNEL and VDI_MODULES")

    def make(path: pathlib.Path) -> None:
        debian.need_tools(TOOLS)
        source = ensure_source()
        build = path / "build"
        _configure(source, build, fragments)
        _compile(name, source, build, path / "build.log")
        modules = path / "modules"
        modules.mkdir(exist_ok=True)
        for module in build.rglob("*.ko"):
            shutil.copy(module, modules / module.name)
        shutil.copy(build / "arch/x86/boot/bzImage", path / "bzImage")

    try:
        path = cache.entry(f"kernel-{cache.key(SOURCE, fragments, *STAMP)}", make, resume=True)
    except Missing as missing:
        raise Missing(f"{name}: {missing}".replace(f"{name}: {name}", name)) from missing
    return Kernel(path / "bzImage", path / "modules")


@functools.cache
def ensure_kernel() -> Kernel:
    """The lab kernel: the one in VDI_KERNEL and VDI_MODULES, or one built from source once."""
    if (image := os.environ.get("VDI_KERNEL")) and (modules := os.environ.get("VDI_MODULES")):
        return Kernel(pathlib.Path(image), pathlib.Path(modules))
    return _build("lab kernel", FRAGMENT.read_text())


@functools.cache
def ensure_debug_kernel() -> Kernel:
    """The lab kernel with its own checks: lockdep, KASAN and others. Slow."""
    return _build("debug kernel", FRAGMENT.read_text() + DEBUG_FRAGMENT.read_text())


def tree() -> tuple[pathlib.Path, pathlib.Path]:
    """Source and build directories of the lab kernel, to build other modules against."""
    return ensure_source(), ensure_kernel().image.parent / "build"


@functools.cache
def ensure_patched_kernel() -> Kernel:
    """The lab kernel with the series of guest/linux/, or the one in VDI_PATCHED_KERNEL and VDI_PATCHED_MODULES."""
    if (image := os.environ.get("VDI_PATCHED_KERNEL")) and (modules := os.environ.get("VDI_PATCHED_MODULES")):
        return Kernel(pathlib.Path(image), pathlib.Path(modules))
    build = tree()[1]
    if not build.is_dir():
        raise Missing(f"patched kernel: {build} does not exist: set VDI_PATCHED_KERNEL too, or unset VDI_KERNEL")
    return _patched("patched kernel", build)


@functools.cache
def ensure_debug_patched_kernel() -> Kernel:
    """The same with the debug kernel's checks."""
    return _patched("patched debug kernel", ensure_debug_kernel().image.parent / "build")


def _patched(name: str, build: pathlib.Path) -> Kernel:
    def make(path: pathlib.Path) -> None:
        debian.need_tools({**TOOLS, "git": "git", "unshare": "util-linux"})
        say(f"{name}: compiling what the patches change; a minute or two, once")
        debian.run([str(SERIES / "build"), str(ensure_source()), str(build), str(path), *STAMP], name)

    content = [file.read_text() for file in (SERIES / "build", *sorted(SERIES.glob("*.patch")))]
    path = cache.entry(f"patched-{cache.key(build.parent.name, *content)}", make)
    return Kernel(path / "bzImage", path / "modules")


@functools.cache
def ensure_debian_kernel() -> Kernel:
    """Debian's packaged kernel: the one in VDI_DEBIAN_KERNEL and VDI_DEBIAN_MODULES, or the fetched one."""
    if (image := os.environ.get("VDI_DEBIAN_KERNEL")) and (modules := os.environ.get("VDI_DEBIAN_MODULES")):
        return Kernel(pathlib.Path(image), pathlib.Path(modules))

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
