# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""What a kernel log must not have: the words of a bug, a failed check, a lock taken in the wrong order."""

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


def lines(log: str) -> list[str]:
    """The lines of a kernel log that tell of a bug."""
    return [line for line in log.splitlines() if any(word in line for word in WORDS)]
