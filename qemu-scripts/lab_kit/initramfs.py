# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An initramfs (cpio, "newc" format, gzip): an init and files beside it."""

import gzip
import pathlib


def _entry(number: int, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def write(output: pathlib.Path, init: pathlib.Path, files: list[pathlib.Path]) -> None:
    """Packs `init` as /init, kernel modules (*.ko*) under /modules and other files under /."""
    entries = [("dev", 0o040755, b"", (0, 0)), ("dev/console", 0o020600, b"", (5, 1))]
    entries += [(name, 0o040755, b"", (0, 0)) for name in ("proc", "sys", "tmp", "modules")]
    entries.append(("init", 0o100755, init.read_bytes(), (0, 0)))
    for file in files:
        folder = "modules/" if ".ko" in file.name else ""
        mode = 0o100755 if file.stat().st_mode & 0o111 else 0o100644
        entries.append((folder + file.name, mode, file.read_bytes(), (0, 0)))
    archive = b"".join(_entry(number, *rest) for number, rest in enumerate(entries, 1))
    output.write_bytes(gzip.compress(archive + _entry(0, "TRAILER!!!", 0), compresslevel=1, mtime=0))
