# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The picture of the demo's third part: each access that waited for its page as a bar, and one of them enlarged."""

import statistics
from dataclasses import dataclass

from lab_kit import svg

WIDTH, HEIGHT = 960, 530
LEFT, RIGHT = 110, 890
TO_GUEST, IN_GUEST, BACK, REFUSED = "#225ea8", "#f59e0b", "#15803d", "#b91c1c"


@dataclass(frozen=True)
class Touch:
    """An access of an endpoint: when it began and ended, what it read, why it was refused. Times are nanoseconds of one
    clock."""

    endpoint: str
    address: int
    began: int
    ended: int
    data: bytes
    refused: str


@dataclass(frozen=True)
class Fault:
    """A page request as the guest's program saw it: when it was told, had mapped the page, had answered."""

    endpoint: str
    address: int
    access: str
    group: int
    told: int
    mapped: int
    answered: int
    success: bool


Pair = tuple[Touch, Fault]


def _aligned(pairs: list[Pair]) -> list[tuple[int, int, int, int]]:
    """Began, told, answered, ended of each pair. The guest's clock is known to within a message's time: it is moved so
    that as many accesses as can be have their request first, and their end last."""
    earliest = max(touch.began - fault.told for touch, fault in pairs)
    latest = min(touch.ended - fault.answered for touch, fault in pairs)
    shift = min(max(0, earliest), latest) if earliest <= latest else (earliest + latest) // 2
    times = []
    for touch, fault in pairs:
        told = min(max(fault.told + shift, touch.began), touch.ended)
        times.append((touch.began, told, min(max(fault.answered + shift, told), touch.ended), touch.ended))
    return times


def _lanes(pairs: list[Pair], times: list[tuple[int, int, int, int]]) -> list[str]:
    """All accesses, a lane for each endpoint."""
    start, end = min(time[0] for time in times), max(time[3] for time in times)
    scale = (RIGHT - LEFT) / (end - start)
    out = []
    endpoints = sorted({touch.endpoint for touch, _ in pairs})
    bottom = 132 + 62 * len(endpoints)
    span = (end - start) / 1e6
    step = svg.step(span)
    for mark in range(int(span / step) + 1):
        x = LEFT + mark * step * 1e6 * scale
        out.append(svg.line(f"M{x:.1f},125 V{bottom}", "#e4e4e7"))
        out.append(svg.text(x, bottom + 16, f"{mark * step:g} ms", 'text-anchor="middle" class="small"'))
    for lane, endpoint in enumerate(endpoints):
        y = 138 + 62 * lane
        out.append(svg.bold(15, y + 20, endpoint))
        access = next(fault.access for touch, fault in pairs if touch.endpoint == endpoint)
        out.append(svg.small(15, y + 36, "reads" if access == "r" else "writes"))
        for (touch, _), (began, told, answered, ended) in zip(pairs, times, strict=True):
            if touch.endpoint != endpoint:
                continue
            at = [LEFT + (time - start) * scale for time in (began, told, answered, ended)]
            colours = [TO_GUEST, IN_GUEST, REFUSED if touch.refused else BACK]
            for x, after, colour in zip(at, at[1:], colours, strict=False):
                out.append(svg.box(x, y, after - x, 40, colour))
            # One access follows the other at once: a line tells them apart.
            out.append(svg.line(f"M{at[0]:.2f},{y - 4} v48", "#18181b"))
            if touch.refused:
                out.append(svg.text(at[3] + 4, y + 25, "refused", f'class="small" fill="{REFUSED}"'))
    return out


def _enlarged(pairs: list[Pair], times: list[tuple[int, int, int, int]]) -> list[str]:
    """The access whose whole time is the median."""
    done = [index for index, (touch, _) in enumerate(pairs) if not touch.refused]
    chosen = sorted(done, key=lambda index: times[index][3] - times[index][0])[len(done) // 2]
    touch, fault = pairs[chosen]
    began, told, answered, ended = times[chosen]
    y = 345
    out = [svg.bold(15, y - 22, f"One of them: {touch.endpoint}, page {touch.address:#x}, group {fault.group}")]
    scale = (RIGHT - LEFT) / (ended - began)
    steps = (
        (began, told, TO_GUEST, "to the guest", "no mapping: the device waits; page request → event → driver → program"),
        (told, answered, IN_GUEST, "in the guest's program", "MAP of one page, then PAGE_RESPONSE with SUCCESS"),
        (answered, ended, BACK, "back to the device", "the translation is tried again; the DMA completes"),
    )
    for row, (start, end, colour, name, what) in enumerate(steps):
        x = LEFT + (start - began) * scale
        out.append(svg.box(x, y, (end - start) * scale, 34, colour))
        line = y + 62 + 22 * row
        out.append(svg.box(15, line - 11, 12, 12, colour))
        out.append(svg.text(34, line, f"{name}: {(end - start) / 1e3:.0f} µs"))
        out.append(svg.small(270, line, what))
    return out


def draw(pairs: list[Pair], again: list[Touch], release: str) -> str:
    """The whole picture, as SVG."""
    times = _aligned(pairs)
    waits = [touch.ended - touch.began for touch, _ in pairs if not touch.refused]
    first = statistics.median(waits) / 1e3
    second = statistics.median(touch.ended - touch.began for touch in again) / 1e3
    body = [
        svg.text(15, 32, "Memory that is mapped when a device touches it", 'font-size="19" font-weight="bold"'),
        svg.text(15, 56, "Two devices do DMA to a buffer of a program in a Linux guest. Nothing of it is mapped in their "
                         "IOMMU: each first touch of a page (a bar) waits"),
        svg.text(15, 74, "until the guest has been asked, has mapped the page, and has answered. "
                         f"Guest: Linux {release}, virtio-iommu with page requests."),
    ]  # fmt: skip
    x = 15
    for colour, name in (
        (TO_GUEST, "request on its way to the guest"),
        (IN_GUEST, "the guest's program maps and answers"),
        (BACK, "answer on its way, DMA completes"),
        (REFUSED, "outside of the buffer: refused"),
    ):
        body += [svg.box(x, 92, 12, 12, colour), svg.small(x + 18, 102, name)]
        x += 44 + 5.9 * len(name)
    body += _lanes(pairs, times)
    body += _enlarged(pairs, times)
    body += [
        svg.text(15, HEIGHT - 42, f"First touch of a page: {first:.0f} µs (median of {len(waits)}). Touched again, now that "
                                  f"it is mapped: {second:.0f} µs, without a page request."),
        svg.small(15, HEIGHT - 22, "The times have the way from the demo to the back-end in them, and the guest is emulated: "
                                   "what it does for the first time takes longest."),
    ]  # fmt: skip
    return svg.document(WIDTH, HEIGHT, "Memory that is mapped when a device touches it", body)
