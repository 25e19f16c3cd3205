# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Rows of figures, in Markdown."""


def row(what: str, ours: float, other: float, goal: float | None = None, beside: str = "") -> str:
    """Our microseconds beside those of something else, which `beside` names where the table's head does not; and whether
    the ratio is at most the goal."""
    ratio = ours / other
    judged = " | |" if goal is None else f" <= {goal} x | {'met' if ratio <= goal else 'MISSED'} |"
    named = f"{beside} {other:.1f} us" if beside else f"{other:.1f} us"
    return f"| {what} | {ours:.1f} us | {named} | {ratio:.2f} |{judged}"
