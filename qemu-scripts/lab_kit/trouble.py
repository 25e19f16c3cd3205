# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a kernel log must not have: the words of a bug, a failed check, a lock taken in the wrong order."""

import re

# lockdep, RCU and ODEBUG say WARNING or INFO, KASAN and the scheduler BUG. A module taints, and that is no trouble.
WORDS = (
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "Oops",
    "Call Trace:",
    "general protection",
    "UBSAN",
    "refcount_t",
    "Kernel panic",
    "lockup",
    "INFO: task",
    "INFO: trying to register non-static key",
)

# What is in the log of a kernel that has come to its devices.
CAME_TO_DEVICES = re.compile(r"\b(pci|pcieport|vfio|virtio|iommu)", re.IGNORECASE)

# What stands above the call trace of an allocation that failed, and at most so many lines above.
WANT_OF_MEMORY = re.compile(r"(page allocation failure|vmalloc error): .*mode:0x")
BEFORE = 8


def lines(log: str) -> list[str]:
    """The lines of a kernel log that tell of a bug."""
    found = log.splitlines()
    return [
        line
        for number, line in enumerate(found)
        if any(word in line for word in WORDS) and not _is_want_of_memory(line, found[max(number - BEFORE, 0) : number])
    ]


def without_early_panic(log: str) -> str:
    """A log of boots without the first one, if that kernel gave up before it came to any device, and another one followed.

    For guests in a guest: an emulator that emulates the processor's virtualization, on a busy machine, was seen to let an
    interrupt come before Linux had set up its source. Those who leave out such a boot still see whatever comes after it.
    """
    boots = [boot for boot in re.split(r"(?m)^(?=.*\] Linux version )", log) if boot.strip()]
    if len(boots) < 2 or "Kernel panic" not in boots[0]:
        return log
    said = [line for line in boots[0].splitlines() if "ommand line" not in line]
    return log if any(CAME_TO_DEVICES.search(line) for line in said) else "".join(boots[1:])


def _is_want_of_memory(line: str, before: list[str]) -> bool:
    """Whether a call trace belongs to an allocation that failed (`warn_alloc`): the host suite makes them fail."""
    return "Call Trace:" in line and any(WANT_OF_MEMORY.search(earlier) for earlier in before)
