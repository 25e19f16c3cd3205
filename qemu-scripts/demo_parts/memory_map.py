# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""The picture of the demo's fourth part: the pages of a program that a device took, in a row for each kind."""

from dataclasses import dataclass

from lab_kit import svg

WIDTH, HEIGHT = 960, 400
LEFT, PITCH, BOX = 130, 130, 110
ASKED, HIT = "#f59e0b", "#86efac"
KINDS = {"list": "the list", "words": "the words", "result": "the result"}


@dataclass(frozen=True)
class Page:
    """A page when the device came to it: what is on it, where it was before the walk, and whether the device had to ask
    for it."""

    kind: str
    address: int
    place: str
    asked: bool

    @property
    def was(self) -> str:
        return "never touched" if self.place == "nowhere yet" else f"was in {self.place}"


def draw(pages: list[list[Page]], text: str, requests: int, hits: int) -> str:
    """The whole picture, as SVG. A page that several elements take is drawn as the first of them found it."""
    title = "A device walks a list in the memory of a program"
    body = [
        svg.text(15, 32, title, 'font-size="19" font-weight="bold"'),
        svg.text(15, 56, "The device was given a pointer to the first element. It uses the program's own page "
                         "table: nothing was mapped for it, nothing was pinned."),
        svg.box(15, 76, 12, 12, HIT), svg.small(33, 86, "hit: the page was in memory"),
        svg.box(230, 76, 12, 12, ASKED), svg.small(248, 86, "page request: the guest's kernel brought the page in"),
    ]  # fmt: skip
    for row, (kind, name) in enumerate(KINDS.items()):
        y = 115 + 75 * row
        body.append(svg.bold(15, y + 28, name))
        found: dict[int, Page] = {}
        for page in (page for taken in pages for page in taken if page.kind == kind):
            found.setdefault(page.address, page)
        for column, page in enumerate(sorted(found.values(), key=lambda page: page.address)):
            x = LEFT + PITCH * column
            body.append(svg.box(x, y, BOX, 46, ASKED if page.asked else HIT))
            body.append(svg.small(x + 8, y + 19, f"{page.address:#x}"))
            body.append(svg.small(x + 8, y + 36, page.was))
            if kind == "list" and column + 1 < len(pages):
                body.append(svg.line(f"M{x + BOX},{y + 23} h{PITCH - BOX}", "#18181b"))
    body += [
        svg.text(15, HEIGHT - 42, f"The program reads: {text}"),
        svg.small(15, HEIGHT - 22, f"{requests} page requests; {hits} accesses used a translation that the device had kept. "
                                   "A second walk makes no page request."),
    ]  # fmt: skip
    return svg.document(WIDTH, HEIGHT, title, body)
