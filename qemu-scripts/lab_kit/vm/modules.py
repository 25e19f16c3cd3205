# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Kernel modules: what needs what, and their bytes."""

import gzip
import lzma
import pathlib
import re
import subprocess


def _name(path: str) -> str:
    """`kernel/drivers/vfio/vfio.ko.xz` is `vfio`; dashes and underscores are the same to the kernel."""
    return pathlib.PurePath(path).name.split(".ko")[0].replace("-", "_")


class Modules:
    """The modules under a directory. Packages leave `modules.dep` to the installation, so what a module needs is read
    from the module."""

    def __init__(self, directory: pathlib.Path):
        self._files = {_name(path.name): path for path in directory.rglob("*.ko*")}
        self._contents: dict[str, bytes] = {}

    def order(self, name: str) -> list[str]:
        """What to load for `name`, itself last. Empty when it is built in."""
        name = _name(name)
        if name not in self._files:
            return []
        order: list[str] = []
        for need in self._needs(name):
            order += [needed for needed in self.order(need) if needed not in order]
        return [*order, name]

    def unpack(self, names: list[str], directory: pathlib.Path) -> list[pathlib.Path]:
        """Writes the modules of `names`, and what they need, as `NAME.ko`, not compressed."""
        directory.mkdir()
        wanted = dict.fromkeys(need for name in names for need in self.order(name))
        for name in wanted:
            (directory / f"{name}.ko").write_bytes(self._read(name))
        return [directory / f"{name}.ko" for name in wanted]

    def _needs(self, name: str) -> list[str]:
        # The .modinfo section holds NUL-terminated "key=value" strings.
        found = re.search(rb"(?<![a-z_])depends=([^\0]*)\0", self._read(name))
        return [_name(need) for need in found[1].decode().split(",") if need] if found else []

    def _read(self, name: str) -> bytes:
        if name not in self._contents:
            self._contents[name] = _decompress(self._files[name])
        return self._contents[name]


def _decompress(path: pathlib.Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return data
