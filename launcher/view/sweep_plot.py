"""A sweep as a picture: one panel for each swept key, its values against the metric. Plain SVG, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _GAP = 320, 240, 70, 46, 46, 24
_STYLE = "font-family:sans-serif;font-size:12px"
_LOG_FROM = 20.0  # positive values whose ends are further apart than this get a logarithmic axis


def sweep_svg(found: dict[str, Any]) -> str:
    """The picture of what `sweep_table.leaderboard` gave; points without a value of the metric are not on it."""
    points = [point for point in found["points"] if point["value"] is not None]
    keys = list(dict.fromkeys(key for point in found["points"] for key in point["values"]))
    width = max(1, len(keys)) * (_LEFT + _WIDTH + _GAP) + _GAP
    height = _TOP + _HEIGHT + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="{_STYLE}">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{_GAP}" y="22" font-size="14">{escape(found["run_id"])}: {escape(found["metric"])}, '
        f"{len(points)} of {len(found['points'])} points</text>",
    ]
    best = min((point["rank"] for point in points), default=None)
    for column, key in enumerate(keys):
        left = _GAP + column * (_LEFT + _WIDTH + _GAP) + _LEFT
        parts += _panel(key, [(point["values"].get(key), point) for point in points], left, best)
    return "\n".join([*parts, "</svg>", ""])


def _panel(key: str, pairs: Sequence[tuple[Any, dict[str, Any]]], left: float, best: int | None) -> list[str]:
    bottom = _TOP + _HEIGHT
    parts = [
        f'<rect x="{left}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888"/>',
        f'<text x="{left + _WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">{escape(key)}</text>',
    ]
    if not pairs:
        return parts
    across = _Axis([value for value, _ in pairs])
    up = _Axis([point["value"] for _, point in pairs])
    for place, label in across.marks():
        x = left + place * _WIDTH
        parts.append(f'<line x1="{x:.1f}" y1="{bottom}" x2="{x:.1f}" y2="{bottom + 5}" stroke="#888"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{escape(label)}</text>')
    for place, label in up.marks():
        y = bottom - place * _HEIGHT
        parts.append(f'<line x1="{left - 5}" y1="{y:.1f}" x2="{left}" y2="{y:.1f}" stroke="#888"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>')
    for value, point in sorted(pairs, key=lambda pair: pair[1]["rank"] == best):  # the best is drawn last, on top
        x, y = left + across.place(value) * _WIDTH, bottom - up.place(point["value"]) * _HEIGHT
        first = point["rank"] == best
        told = f"point {point['point']}: {point['value']:.6g} at {_label(value)}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if first else 4}" fill="{"#d62728" if first else "#1f77b4"}" '
            f'fill-opacity="0.8"><title>{escape(told)}</title></circle>'
        )
    return parts


class _Axis:
    """Values to places from 0 to 1: numbers by their size or its logarithm, anything else one beside the other."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        if not self._numbers:
            self._words = list(dict.fromkeys(_label(value) for value in values))
            return
        self._low, self._high = float(min(values)), float(max(values))
        self._log = self._low > 0 and self._high / self._low > _LOG_FROM
        self._values = sorted({float(value) for value in values})

    def place(self, value: Any) -> float:
        """From 0.05 to 0.95: no point lies on the frame."""
        if not self._numbers:
            share = (self._words.index(_label(value)) + 0.5) / len(self._words)
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
            return [(self.place(value), _label(value)) for value in self._values]
        middle = math.sqrt(self._low * self._high) if self._log else (self._low + self._high) / 2
        return [(self.place(value), f"{value:.3g}") for value in (self._low, middle, self._high)]


def _label(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 16 else text[:15] + "…"
