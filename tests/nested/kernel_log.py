# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""This machine's kernel log from here on: what its IOMMU has refused."""

import os
import re
from dataclasses import dataclass

FAULT = re.compile(r"DMAR: \[DMA (Read|Write).*Request device \[([0-9a-f:.]+)\] fault addr (0x[0-9a-f]+)")


@dataclass(frozen=True)
class Fault:
    """An access that the IOMMU has refused."""

    function: str
    access: str
    page: int


class KernelLog:
    """The records since this was made, or since the last call."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.lseek(self._fd, 0, os.SEEK_END)

    def faults(self) -> list[Fault]:
        """The faults; the kernel leaves some out when there are many."""
        found = (FAULT.search(record) for record in self._records())
        return [Fault(match[2], match[1].lower(), int(match[3], 16)) for match in found if match]

    def _records(self) -> list[str]:
        records = []
        while True:
            try:
                records.append(os.read(self._fd, 8192).decode(errors="replace"))
            except BlockingIOError:
                return records

    def close(self) -> None:
        os.close(self._fd)
