# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The lab kernel, built from Debian's source package, and Debian's packaged kernel."""

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
FRAGMENT = pathlib.Path(__file__).resolve().parents[2] / "guest" / "kernel" / "lab.config"
SERIES = pathlib.Path(__file__).resolve().parents[2] / "guest" / "linux"

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


def _configure(source: pathlib.Path, build: pathlib.Path) -> None:
    """tinyconfig with the fragment; every line of the fragment must be in force afterwards."""
    build.mkdir(exist_ok=True)
    make = ["make", "-s", "-C", str(source), f"O={build}"]
    debian.run([*make, "tinyconfig"], "kernel configuration")
    with (build / ".config").open("a") as config:
        config.write(FRAGMENT.read_text())
    debian.run([*make, "olddefconfig"], "kernel configuration")
    have = set((build / ".config").read_text().splitlines())
    for line in FRAGMENT.read_text().splitlines():
        name, _, value = line.partition("=")
        off = value == "n" and not any(other.startswith(f"{name}=") for other in have)
        if line.startswith("CONFIG_") and line not in have and not off:
            raise Missing(f"kernel configuration: {line} of {FRAGMENT.name} is not in force")


def _compile(source: pathlib.Path, build: pathlib.Path, log: pathlib.Path) -> None:
    """Runs make with a progress line now and then."""
    jobs = (os.cpu_count() or 1) + 1
    command = ["make", "-C", str(source), f"O={build}", f"-j{jobs}", *STAMP, "bzImage", "modules"]
    started = last = time.monotonic()
    say(f"lab kernel: compiling with {jobs} jobs; some minutes, once")
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
                say(f"lab kernel: {objects} of about {OBJECTS} files, {last - started:.0f} s")
    if process.returncode != 0:
        words = [line for line in log.read_text().splitlines() if "rror" in line]
        raise Missing(f"lab kernel: the build failed, see {log}: {words[0] if words else 'no message'}")


@functools.cache
def ensure_kernel() -> Kernel:
    """The lab kernel: the one in VDI_KERNEL and VDI_MODULES, or one built from source once."""
    if (image := os.environ.get("VDI_KERNEL")) and (modules := os.environ.get("VDI_MODULES")):
        return Kernel(pathlib.Path(image), pathlib.Path(modules))
    if os.uname().machine != "x86_64":
        raise Missing("lab kernel: it is built for x86_64 on x86_64: set VDI_KERNEL and VDI_MODULES")

    def make(path: pathlib.Path) -> None:
        debian.need_tools(TOOLS)
        source = ensure_source()
        build = path / "build"
        _configure(source, build)
        _compile(source, build, path / "build.log")
        modules = path / "modules"
        modules.mkdir(exist_ok=True)
        for module in build.rglob("*.ko"):
            shutil.copy(module, modules / module.name)
        shutil.copy(build / "arch/x86/boot/bzImage", path / "bzImage")

    try:
        name = f"kernel-{cache.key(SOURCE, FRAGMENT.read_text(), *STAMP)}"
        path = cache.entry(name, make, resume=True)
    except Missing as missing:
        raise Missing(f"lab kernel: {missing}".replace("lab kernel: lab kernel", "lab kernel")) from missing
    return Kernel(path / "bzImage", path / "modules")


def tree() -> tuple[pathlib.Path, pathlib.Path]:
    """Source and build directories of the lab kernel, to build other modules against."""
    return ensure_source(), ensure_kernel().image.parent / "build"


@functools.cache
def ensure_patched_modules() -> pathlib.Path:
    """A directory with the virtio-iommu module of guest/linux/ for the lab kernel."""
    if modules := os.environ.get("VDI_PATCHED_MODULES"):
        return pathlib.Path(modules)
    source, build = tree()
    if not build.is_dir():
        raise Missing(f"patched driver: {build} does not exist: set VDI_PATCHED_MODULES, or unset VDI_KERNEL")

    def make(path: pathlib.Path) -> None:
        debian.need_tools({**TOOLS, "git": "git"})
        debian.run([str(SERIES / "build"), str(source), str(build), str(path / "build")], "patched driver")
        modules = path / "modules"
        modules.mkdir()
        shutil.copy(path / "build" / "virtio-iommu.ko", modules)

    content = [file.read_text() for file in (SERIES / "build", *sorted(SERIES.glob("*.patch")))]
    return cache.entry(f"patched-{cache.key(build.parent.name, *content)}", make) / "modules"


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
