# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An initramfs (cpio "newc" format) with our init and the kernel modules it may load."""

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

    def _needs(self, name: str) -> list[str]:
        # The .modinfo section holds NUL-terminated "key=value" strings.
        found = re.search(rb"(?<![a-z_])depends=([^\0]*)\0", self.read(name))
        return [_name(need) for need in found[1].decode().split(",") if need] if found else []

    def read(self, name: str) -> bytes:
        """The module's bytes, decompressed."""
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


def _entry(number: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def write(path: pathlib.Path, init: pathlib.Path, modules: Modules, names: list[str]) -> None:
    """Packs `init` and the modules of `names` with what they need as `/modules/NAME.ko`."""
    entries = [("dev", 0o040755, b"", (0, 0)), ("dev/console", 0o020600, b"", (5, 1))]
    entries += [(name, 0o040755, b"", (0, 0)) for name in ("proc", "sys", "modules")]
    entries.append(("init", 0o100755, init.read_bytes(), (0, 0)))
    wanted = dict.fromkeys(need for name in names for need in modules.order(name))
    entries += [(f"modules/{name}.ko", 0o100644, modules.read(name), (0, 0)) for name in wanted]
    with path.open("wb") as file:
        for number, (name, mode, data, device) in enumerate(entries, 1):
            file.write(_entry(number, name, mode, data, device))
        file.write(_entry(0, "TRAILER!!!", 0))
