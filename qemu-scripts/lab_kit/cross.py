# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The compilers that make kernels and programs for Arm on this machine."""

import contextlib
import os
import pathlib
import shlex
import shutil
import subprocess

from . import cache, debian
from .cache import Missing, OutOfReach, say

PREFIX = "aarch64-linux-gnu-"
COMPILER = f"{PREFIX}gcc"

# Commands or files, and the packages that have them.
TOOLS = {COMPILER: "gcc-aarch64-linux-gnu"}
PROGRAM_TOOLS = {**TOOLS, "/usr/aarch64-linux-gnu/lib/libc.a": "libc6-dev-arm64-cross"}

# Rust's name for it, and how long rustup may take to fetch the library.
TARGET = "aarch64-unknown-linux-gnu"
RUSTUP_SECONDS = 180

# Run by the unpacked loader, on the unpacked libraries. It would look for the library of Rust beside the loader.
RUSTC = """\
#!/bin/sh
root={root}
exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" \\
    "$root/usr/bin/rustc" --sysroot "$root/usr" "$@"
"""


def _has_target() -> bool:
    """Whether the machine's own Rust makes programs for Arm."""
    if not shutil.which("rustc"):
        return False
    command = ["rustc", "--print", "target-libdir", "--target", TARGET]
    result = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    return result.returncode == 0 and any(pathlib.Path(result.stdout.strip()).glob("libstd-*.rlib"))


def _add_target() -> None:
    """Has rustup fetch the library for Arm, if it can."""
    if cache.is_closed() or not shutil.which("rustup"):
        return
    say("Rust's library for Arm: rustup fetches it")
    with contextlib.suppress(Missing):
        debian.run(["rustup", "target", "add", TARGET], "rustup", timeout=RUSTUP_SECONDS)


def _packaged() -> pathlib.Path:
    """Debian's compiler, with its library for this machine and for Arm."""
    if os.uname().machine != "x86_64":
        raise Missing("the packaged compiler is for x86_64")

    def make(path: pathlib.Path) -> None:
        what = f"rustc from {debian.BACKPORTS}"
        # One is built later than the other now and then; they are no use together then.
        library = "libstd-rust-dev"
        versions = {debian.version(library, debian.BACKPORTS, architecture) for architecture in (debian.MACHINE, "arm64")}
        if len(versions) > 1:
            raise Missing(f"{what}: there are two versions of {library}: {', '.join(sorted(versions))}")
        debian.fetch(path, ["base-files", "rustc"], debian.BACKPORTS, what, dependencies=True)
        debian.fetch(path, [library], debian.BACKPORTS, f"Rust's library for Arm from {debian.BACKPORTS}", architecture="arm64")
        wrapper = path / "rustc"
        wrapper.write_text(RUSTC.format(root=shlex.quote(str(path / "root"))))
        wrapper.chmod(0o755)
        debian.run([str(wrapper), "--version"], what)

    return cache.entry(f"rustc-{cache.key(debian.BACKPORTS, RUSTC)}", make) / "rustc"


def _rust() -> dict[str, str]:
    """Variables that make cargo use a compiler with a library for Arm: the machine's own, or Debian's."""
    if not _has_target():
        _add_target()
    if _has_target():
        return {}
    try:
        return {"RUSTC": str(_packaged())}
    except Missing as missing:
        raise OutOfReach(f"there is no Rust for Arm ({missing}; try rustup target add {TARGET})") from missing


def cargo_environment() -> dict[str, str]:
    """Variables that make cargo build static programs for Arm."""
    debian.need_tools(PROGRAM_TOOLS)
    name = TARGET.upper().replace("-", "_")
    return {
        f"CARGO_TARGET_{name}_LINKER": COMPILER,
        f"CARGO_TARGET_{name}_RUSTFLAGS": "-C target-feature=+crt-static",
        **_rust(),
    }
