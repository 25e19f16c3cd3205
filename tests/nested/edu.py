# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU's `edu` function (docs/specs/edu): it copies between memory and a buffer of its own."""

import ctypes
import mmap
import os
import pathlib
import struct
import time

from passthrough import SYSFS

from lab_kit.vm.guest import TIMEOUT, Guest

# Of the buffer.
LENGTH = 0x1000


class Edu:
    """An `edu` that the guest has open through VFIO under a name. It puts 28 bits of an address on the bus."""

    def __init__(self, guest: Guest, name: str):
        self._guest = guest
        self._name = name

    def read(self, iova: int, length: int = LENGTH) -> None:
        """Memory into the buffer. That the IOMMU refuses it the function does not say."""
        self._guest.run(f"edu-read {self._name} {iova:#x} {length:#x}")

    def write(self, iova: int, length: int = LENGTH) -> None:
        """The buffer into memory."""
        self._guest.run(f"edu-write {self._name} {iova:#x} {length:#x}")


COMMAND, MEMORY_AND_MASTER = 4, 6
IDENTITY, SOURCE, DESTINATION, COUNT, DMA_COMMAND = 0, 0x80, 0x88, 0x90, 0x98
START, TO_MEMORY = 1, 2
# In the function's own addresses.
BUFFER = 0x4_0000


class BareEdu:
    """An `edu` of this machine, driven through sysfs: whoever has it open, alive or not, and wherever it is attached."""

    def __init__(self, function: str):
        self._path: pathlib.Path = SYSFS / function
        fd = os.open(self._path / "resource0", os.O_RDWR | os.O_CLOEXEC)
        self._bar = mmap.mmap(fd, mmap.PAGESIZE)
        os.close(fd)

    def read(self, iova: int) -> None:
        """Memory into the buffer."""
        self._copy(iova, BUFFER, START)

    def write(self, iova: int) -> None:
        """The buffer into memory."""
        self._copy(BUFFER, iova, START | TO_MEMORY)

    def _copy(self, source: int, destination: int, command: int) -> None:
        self._enable()
        registers = (SOURCE, source), (DESTINATION, destination), (COUNT, LENGTH), (DMA_COMMAND, command)
        for register, value in registers:
            self._register(register).value = value
        # Its end can be seen in the register only.
        deadline = time.monotonic() + TIMEOUT
        while self._register(DMA_COMMAND).value & START:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._path.name}: the copy does not end")

    def _enable(self) -> None:
        """Who closes the device takes that away."""
        with (self._path / "config").open("r+b", buffering=0) as config:
            config.seek(COMMAND)
            config.write(struct.pack("<H", MEMORY_AND_MASTER))
        if ctypes.c_uint32.from_buffer(self._bar, IDENTITY).value & 0xFF != 0xED:
            raise OSError(f"{self._path.name} does not answer")

    def _register(self, offset: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_buffer(self._bar, offset)

    def close(self) -> None:
        self._bar.close()
