# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A shell with the usual commands in one static file, for guests that a person uses."""

import functools
import pathlib

from . import cache, debian

PACKAGE = "busybox-static"


@functools.cache
def ensure_busybox() -> pathlib.Path:
    """The program."""

    def make(path: pathlib.Path) -> None:
        debian.fetch(path, [PACKAGE], debian.STABLE, PACKAGE)

    root = cache.entry(f"busybox-{cache.key(PACKAGE, debian.STABLE)}", make) / "root"
    found = next((path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists()), None)
    if not found:
        raise cache.Missing(f"{PACKAGE}: no busybox in {root}")
    return found
