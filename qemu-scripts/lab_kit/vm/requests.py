# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The requests of a driver, from the log of a back-end (`--log-level trace`)."""

import pathlib
import re

HEAD, TAIL = 4, 4
# Types of requests.
ATTACH, DETACH, MAP, UNMAP, PROBE, ATTACH_TABLE, INVALIDATE = range(1, 8)
# Flags of ATTACH, and those of MAP.
BYPASS = 1
READ, WRITE, MMIO = 1, 2, 4
# Behind the head of a MAP: domain, first and last address, where it leads, flags.
MAP_FIELDS = "<I3QI"

_REQUEST = re.compile(r"request \[([0-9a-f, ]+)\] with (\d+) bytes")


def logged(log: pathlib.Path) -> list[tuple[bytes, int]]:
    """The device-readable part of each request, and the length of the other."""
    found = _REQUEST.findall(log.read_text())
    return [(bytes.fromhex(data.replace(",", "")), int(room)) for data, room in found]
