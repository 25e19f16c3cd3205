# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""QEMU's `edu` function, driven by the guest's program: it copies between memory and a buffer of its own."""

from harness.guest import Guest

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
