# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""An NVMe disk, through the guest's driver."""

import time

from .guest import Guest

NAME = "nvme0n1"
MIB = 1 << 20
PARTS = 8


class Disk:
    """The disk and what a test has written to it: parts of 1 MiB, each with another pattern."""

    def __init__(self, guest: Guest):
        self._guest = guest
        self._written = 0

    def is_there(self) -> bool:
        return NAME in self._guest.lines("ls /dev")

    def use(self, seconds: float = 0.0) -> None:
        """Writes parts of the disk and verifies them for that long, at least once."""
        end = time.monotonic() + seconds
        while True:
            self._written += 1
            self._guest.run(f"disk-write {self._part(self._written)}")
            self.verify()
            if time.monotonic() >= end:
                return

    def verify(self) -> None:
        """What was written last is there."""
        self._guest.run(f"disk-verify {self._part(self._written)}")

    def start_writing(self) -> None:
        """Writes all over the parts, and does not wait for it."""
        self._guest.run(f"background disk-write {NAME} 0 {PARTS * MIB} 0")

    def _part(self, number: int) -> str:
        return f"{NAME} {number % PARTS * MIB} {MIB} {number}"
