"""Panels of pictures: axes, marks and frames. Plain SVG, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from launcher.units import show_count

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 320, 240, 70, 46, 46, 24
STYLE = "font-family:sans-serif;font-size:12px"
_LOG_FROM = 20.0  # positive values whose ends are further apart than this get a logarithmic axis


def picture(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A whole picture with a title."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="{STYLE}">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="{GAP}" y="22" font-size="14">{escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def frame(
    left: float, top: float, width: float, name: str, across: Axis | None = None, up: Axis | None = None
) -> list[str]:
    """A panel's frame, its name below, and the marks of its axes."""
    bottom = top + HEIGHT
    parts = [
        f'<rect x="{left}" y="{top}" width="{width}" height="{HEIGHT}" fill="none" stroke="#888"/>',
        f'<text x="{left + width / 2}" y="{bottom + 36}" text-anchor="middle">{escape(name)}</text>',
    ]
    for place, label in across.marks() if across else []:
        x = left + place * width
        parts.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
    for place, label in up.marks() if up else []:
        y = bottom - place * HEIGHT
        parts.append(f'<line x1="{left - 5}" y1="{y:.1f}" x2="{left}" y2="{y:.1f}" stroke="#888"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    return parts


class Axis:
    """Values to places from 0 to 1: numbers by their size or its logarithm, anything else one beside the other."""

    def __init__(self, values: Sequence[Any], *, even: bool = False) -> None:
        """`even` axes are never logarithmic."""
        self._numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if not self._numbers:
            self._words = list(dict.fromkeys(label_of(value) for value in values))
            return
        self._low, self._high = float(min(values)), float(max(values))
        self._log = not even and self._low > 0 and self._high / self._low > _LOG_FROM
        self._values = sorted({float(value) for value in values})
        self._whole = all(isinstance(value, int) for value in values)

    def place(self, value: Any) -> float:
        """From 0.05 to 0.95: no point lies on the frame."""
        if not self._numbers:
            share = (self._words.index(label_of(value)) + 0.5) / len(self._words)
        elif self._high == self._low:
            share = 0.5
        elif self._log:
            share = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            share = (value - self._low) / (self._high - self._low)
        return 0.05 + 0.9 * share

    def marks(self) -> list[tuple[float, str]]:
        """Where the axis has a mark, and what stands there."""
        if not self._numbers:
            return [(0.05 + 0.9 * (index + 0.5) / len(self._words), word) for index, word in enumerate(self._words)]
        if len(self._values) <= 5:
            return [(self.place(value), self._label(value)) for value in self._values]
        middle = math.sqrt(self._low * self._high) if self._log else (self._low + self._high) / 2
        return [(self.place(value), self._label(value)) for value in (self._low, middle, self._high)]

    def _label(self, value: float) -> str:
        if self._whole:
            return str(round(value))
        return show_count(value) if abs(value) >= 10_000 else label_of(value)


def label_of(value: Any) -> str:
    """A value as it stands at an axis."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 16 else text[:15] + "…"
