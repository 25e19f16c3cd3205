# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Pieces of a picture in SVG."""

from html import escape


def text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(words)}</text>'


def small(x: float, y: float, words: str, more: str = "") -> str:
    return text(x, y, words, f'class="small" {more}')


def bold(x: float, y: float, words: str, more: str = "") -> str:
    return text(x, y, words, f'font-weight="bold" {more}')


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    """A filled rectangle; what is too narrow to be seen is drawn all the same."""
    return f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width, 0.6):.2f}" height="{height}" fill="{colour}"/>'


def line(path: str, colour: str) -> str:
    return f'<path d="{path}" stroke="{colour}" stroke-width="1"/>'


def step(span: float) -> float:
    """A distance of marks, 1, 2 or 5 times a power of ten, that gives at most twelve of them."""
    steps = (digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 5))
    return next(step for step in steps if span / step <= 12)


def document(width: int, height: int, title: str, body: list[str]) -> str:
    """The whole picture, on white."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            'font-family="DejaVu Sans, Arial, sans-serif" font-size="13">',
            f"<title>{escape(title)}</title>",
            "<!-- SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause -->",
            "<style>.small { font-size: 11.5px; fill: #3f3f46; }</style>",
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *body,
            "</svg>\n",
        ]
    )
