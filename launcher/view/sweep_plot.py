"""A sweep as a picture: one panel for each swept key, its values against the metric."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from launcher.view.svg import BOTTOM, GAP, HEIGHT, LEFT, TOP, WIDTH, Axis, frame, label_of, picture


def sweep_svg(found: dict[str, Any]) -> str:
    """The picture of what `sweep_table.leaderboard` gave; points without a value of the metric are not on it."""
    points = [point for point in found["points"] if point["value"] is not None]
    keys = list(dict.fromkeys(key for point in found["points"] for key in point["values"]))
    width = max(1, len(keys)) * (LEFT + WIDTH + GAP) + GAP
    title = f"{found['run_id']}: {found['metric']}, {len(points)} of {len(found['points'])} points"
    best = min((point["rank"] for point in points), default=None)
    parts: list[str] = []
    for column, key in enumerate(keys):
        left = GAP + column * (LEFT + WIDTH + GAP) + LEFT
        parts += _panel(key, [(point["values"].get(key), point) for point in points], left, best)
    return picture(width, TOP + HEIGHT + BOTTOM, title, parts)


def _panel(key: str, pairs: Sequence[tuple[Any, dict[str, Any]]], left: float, best: int | None) -> list[str]:
    if not pairs:
        return frame(left, TOP, WIDTH, key)
    across = Axis([value for value, _ in pairs])
    up = Axis([point["value"] for _, point in pairs])
    parts = frame(left, TOP, WIDTH, key, across, up)
    for value, point in sorted(pairs, key=lambda pair: pair[1]["rank"] == best):  # the best is drawn last, on top
        x, y = left + across.place(value) * WIDTH, TOP + HEIGHT - up.place(point["value"]) * HEIGHT
        first = point["rank"] == best
        told = f"point {point['point']}: {point['value']:.6g} at {label_of(value)}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{6 if first else 4}" fill="{"#d62728" if first else "#1f77b4"}" '
            f'fill-opacity="0.8"><title>{escape(told)}</title></circle>'
        )
    return parts
