# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The memory of a guest, seen from the machine that it runs on."""

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator


class GuestMemory:
    """The memory of a guest as its QEMU holds it, in this process."""

    def __init__(self, pid: int):
        files = [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
        path = next(path for path in files if os.readlink(path).startswith("/memfd:memory-backend-memfd"))
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._map = mmap.mmap(self._fd, os.fstat(self._fd).st_size)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def find(self, page: bytes) -> list[int]:
        """Where a page of these bytes is: addresses in this process."""
        return [self._base + offset for first, end in self._used() for offset in self._offsets(page, first, end)]

    def page(self, contents: bytes) -> memoryview:
        """The page of these bytes, of which there must be one."""
        offset = self.physical(contents)
        return memoryview(self._map)[offset : offset + len(contents)]

    def physical(self, contents: bytes) -> int:
        """The guest-physical address of the page of these bytes, of which there must be one. All of the guest's memory
        is below the first gap."""
        (address,) = self.find(contents)
        return address - self._base

    def _used(self) -> Iterator[tuple[int, int]]:
        """The parts that have memory: reading the others would give them some."""
        end = 0
        while True:
            try:
                first = os.lseek(self._fd, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return
            end = os.lseek(self._fd, first, os.SEEK_HOLE)
            yield first, end

    def _offsets(self, page: bytes, first: int, end: int) -> Iterator[int]:
        at = self._map.find(page, first, end)
        while at >= 0:
            if at % mmap.PAGESIZE == 0:
                yield at
            at = self._map.find(page, at + 1, end)

    def close(self) -> None:
        # The mapping goes with the process: its address is in use here.
        os.close(self._fd)
