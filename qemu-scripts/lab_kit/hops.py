# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The picture of where the time of a page request goes, from what the benches print (benches/common/hops.rs)."""

import json
from typing import Any

from . import svg

PREFIX = "hops "
WIDTH, TOP, BLOCK = 960, 130, 196
LEFT, RIGHT = 15, 945
# Where the guest has its turn: not measured, so not to scale.
GUEST = 90
WAKE, BARE = "#a1a1aa", "#15803d"
OWN = ("#1e3a8a", "#2563eb", "#0891b2", "#7c3aed")


class Reports:
    """Shows a bench's output and keeps its reports."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []

    def write(self, text: str) -> None:
        if text.startswith(PREFIX):
            self.found.append(json.loads(text.removeprefix(PREFIX)))
        else:
            print(text, end="")

    def flush(self) -> None:
        """Nothing is held back."""


def _bar(report: dict[str, Any], y: float, scale: float) -> list[str]:
    """Ours: up to the guest, its turn, and the answer's way back; a line for each half with the figures."""
    out: list[str] = []
    x, colours = float(LEFT), iter(OWN)
    half = len(report["hops"]) // 2
    for index, (name, own, time) in enumerate(report["hops"]):
        colour = next(colours) if own else WAKE
        if index == half:
            out.append(svg.line(f"M{x:.1f},{y + 15} h{GUEST}", WAKE))
            out.append(svg.small(x + GUEST / 2, y + 10, "the guest", 'text-anchor="middle"'))
            x += GUEST
        out.append(svg.box(x, y, time * scale, 30, colour))
        x += time * scale
        column, row = LEFT + 225 * (index % half), y + 50 + 20 * (index // half)
        out += [svg.box(column, row - 10, 11, 11, colour), svg.small(column + 17, row, f"{name}: {time:.1f} µs")]
    return out


def _block(report: dict[str, Any], y: float) -> list[str]:
    whole, bare_whole, bare_awake = (report[key] for key in ("whole", "bare_whole", "bare_awake"))
    scale = (RIGHT - LEFT - GUEST) / max(sum(time for _, _, time in report["hops"]), whole, bare_whole)
    wake = bare_whole - bare_awake
    bare = y + 98
    return [
        svg.bold(LEFT, y, f"{report['host']}: {report['own']:.1f} µs of its own in {whole:.0f} µs"),
        *_bar(report, y + 12, scale),
        svg.box(LEFT, bare, wake * scale, 12, WAKE),
        svg.box(LEFT + wake * scale, bare, bare_awake * scale, 12, BARE),
        svg.small(LEFT, bare + 28,
                  f"epoll, read and write alone: wakes {wake:.1f} µs, reads and writes {bare_awake:.1f} µs"),
        svg.text(LEFT, bare + 50, f"256 groups outstanding all the time: {report['rate'] / 1e3:.0f} thousand a second; "
                                  f"read and write alone {report['bare_rate'] / 1e3:.0f} thousand"),
    ]  # fmt: skip


def draw(reports: list[dict[str, Any]]) -> str:
    """All reports, one below the other, each to its own scale."""
    title = "A page request, hop by hop"
    body = [
        svg.bold(LEFT, 32, title, 'font-size="19"'),
        svg.text(LEFT, 56, "Medians. Blue and violet: the back-end runs. Grey: a thread of it has been told and does not "
                           "run yet; that is the machine's."),
        svg.text(LEFT, 74, "Left of the guest: from the host's readable queue to the guest's interrupt. Right of it: from "
                           "the guest's kick to the answered host."),
        svg.text(LEFT, 92, "Green: a loop that does nothing but wait, read and write, on the same kind of descriptor."),
    ]  # fmt: skip
    for index, report in enumerate(reports):
        body += _block(report, TOP + BLOCK * index)
    return svg.document(WIDTH, TOP + BLOCK * len(reports) - 20, title, body)
