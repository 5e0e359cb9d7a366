"""What training measured, step by step: from the run's events to rows, a table, CSV and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.lengths import Lengths
from launcher.record import Event, read_events
from launcher.rundir import RunDir
from launcher.units import counted, show_count, show_mib
from launcher.view.data_report import show_lengths
from launcher.view.svg import BOTTOM, GAP, HEIGHT, LEFT, TOP, Axis, frame, picture

ROWS = 20  # of the table, unless another number is asked for
_VALIDATIONS = 5  # that are shown beside them
SLOW = 1.2  # times the usual from which a rank is worth a word
_ABOUT = ("kind", "stage", "rank", "group", "steps")
_PARTS = ("data", "compute", "pipeline", "reference", "exchange", "optimizer", "checkpoint")
_PANELS = {
    "loss": "loss",
    "rewards/accuracies": "pairs judged right",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens per second",
    "mfu": "MFU",
}
_PANEL_WIDTH = 560
_POINTS = 600  # of a curve; of more steps the lowest and the highest of each share are drawn


def metrics(files: RunDir, run_id: str, stage: str) -> dict[str, Any]:
    """What a stage's events say of its steps; a step that was done again counts once, as it was last.

    {run_id, stage, steps: [{step, attempt, time, loss, ...}], validation: [{step, loss, ...}], resumed: [steps], ranks,
    spikes, data, tracking}; `ranks` is the newest look at all ranks, `data` what the data were, None where unknown.
    """
    events = read_events(files.events, stage=stage)
    by_step = _by_step(events, "step")
    validated = _by_step(events, "validation")
    trackers = {str(event["tracker"]): event for event in events if event["kind"] == "tracking"}
    return {
        "run_id": run_id,
        "stage": stage,
        "steps": [_without(by_step[step], _ABOUT) for step in sorted(by_step)],
        "validation": [_without(validated[step], _ABOUT) for step in sorted(validated)],
        "resumed": [int(event["step"]) for event in events if event["kind"] == "resumed"],
        "ranks": _newest(events, "ranks"),
        "spikes": [_without(event, _ABOUT) for event in events if event["kind"] == "spike"],
        "data": _newest(events, "data"),
        "tracking": [
            {key: event.get(key, "") for key in ("tracker", "place", "trouble")} for event in trackers.values()
        ],
    }


def to_csv(found: Mapping[str, Any]) -> str:
    """A line for each step under the names of its figures."""
    names = list(dict.fromkeys(name for step in found["steps"] for name in step))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in step.items()} for step in found["steps"])
    return text.getvalue()


def show_metrics(found: Mapping[str, Any], console: Console, *, rows: int = ROWS) -> None:
    """Print some of the steps (all with 0) in equal distances, and below them what is to be said of all."""
    steps = found["steps"]
    console.print(Text.assemble((found["run_id"], "bold"), f"  {found['stage']}, {counted(len(steps), 'step')}"))
    if steps:
        _show_steps(_some(steps, rows), console)
        for each in _some(found["validation"], rows and min(rows, _VALIDATIONS)):
            console.print(Text(validation_text(each)))
        console.print(Text(_split(steps)))
    if found["ranks"]:
        console.print(Text(memory_text(found["ranks"])))
        if slow := slow_text(found["ranks"], least=0.0):
            console.print(Text(slow, style="yellow" if found["ranks"]["slowdown"] >= SLOW else ""))
    for step in found["resumed"]:
        console.print(Text(f"resumed after step {step}", style="dim"))
    for spike in found["spikes"]:
        console.print(Text(spike_text(spike), style="yellow"))
    if found["data"] and found["data"].get("lengths"):
        console.print(Text("lengths of samples", style="bold"))
        show_lengths(_lengths(found["data"]["lengths"]), "tokens", console)
    for tracker in found["tracking"]:
        text = f"{tracker['tracker']}  {tracker['place'] or tracker['trouble']}"
        console.print(Text(text, style="" if tracker["place"] else "yellow"), soft_wrap=True)


def memory_text(ranks: Mapping[str, Any]) -> str:
    """Peaks of the fullest rank: "memory up to 61.2 GiB a GPU (rank 3 on n2), 4.1 GiB a process"."""
    where = f"(rank {ranks['memory_rank']} on {ranks['memory_node']})"
    if ranks.get("reserved_mib"):
        return (
            f"memory up to {show_mib(ranks['reserved_mib'])} a GPU {where}, {show_mib(ranks['resident_mib'])} a process"
        )
    return f"memory up to {show_mib(ranks['resident_mib'])} a process {where}"


def slow_text(ranks: Mapping[str, Any], *, least: float = SLOW) -> str:
    """The slowest rank beside its like, "" where it is not `least` times as slow, or alone."""
    if ranks.get("slowdown") is None or ranks["slowdown"] < least:
        return ""
    return f"slowest: rank {ranks['slow_rank']} on {ranks['slow_node']}, {ranks['slowdown']:.2f} x the usual"


def validation_text(validation: Mapping[str, Any]) -> str:
    """A look at rows that are not trained on."""
    accuracy = validation.get("rewards/accuracies")
    right = f", {accuracy:.1%} right" if accuracy is not None else ""
    samples = counted(validation["samples"], "sample")
    return f"validation after step {validation['step']}: loss {_number(validation['loss'])}{right} of {samples}"


def spike_text(spike: Mapping[str, Any]) -> str:
    """What a spike was, and some of its samples."""
    name = "loss" if spike["figure"] == "loss" else "gradient norm"
    value = "no number" if spike["value"] is None else f"{spike['value']:.4g}"
    usual = f", usual {spike['usual']:.4g}" if spike.get("usual") is not None else ""
    samples = spike["samples"]
    more = f" and {len(samples) - 5} more" if len(samples) > 5 else ""
    return f"step {spike['step']}: {name} {value}{usual}; samples {', '.join(samples[:5])}{more}"


def metrics_svg(found: Mapping[str, Any]) -> str:
    """The course of loss, gradient norm, learning rate, tokens per second and, where they are known, accuracy and MFU.

    Grey lines are where an attempt began, red ones are spikes; orange dots are of what is not trained on.
    """
    steps = found["steps"]
    panels = [(key, name) for key, name in _PANELS.items() if any(step.get(key) is not None for step in steps)]
    parts: list[str] = []
    for row, (key, name) in enumerate(panels):
        top = TOP + row * (HEIGHT + BOTTOM)
        points = [(int(step["step"]), float(step[key])) for step in steps if step.get(key) is not None]
        jumps = key in ("loss", "grad_norm")
        spikes = [int(spike["step"]) for spike in found["spikes"] if jumps]
        beside = [(int(each["step"]), float(each[key])) for each in found["validation"] if each.get(key) is not None]
        parts += _curve(name, points, top, found["resumed"], spikes, even=not jumps, beside=beside)
    height = TOP + max(1, len(panels)) * (HEIGHT + BOTTOM)
    return picture(LEFT + _PANEL_WIDTH + 2 * GAP, height, f"{found['run_id']}: {found['stage']}", parts)


def _curve(
    name: str,
    points: Sequence[tuple[int, float]],
    top: float,
    resumed: Sequence[int],
    spikes: Sequence[int],
    *,
    even: bool,
    beside: Sequence[tuple[int, float]] = (),
) -> list[str]:
    left, bottom = GAP + LEFT, top + HEIGHT
    across = Axis([step for step, _ in points], even=True)
    up = Axis([value for _, value in (*points, *beside)], even=even)
    parts = frame(left, top, _PANEL_WIDTH, f"{name} (orange: validation)" if beside else name, across, up)
    first, last = points[0][0], points[-1][0]
    for marked, colour in ((resumed, "#bbb"), (spikes, "#d62728")):
        for step in marked:
            if first <= step <= last:
                x = left + across.place(step) * _PANEL_WIDTH
                parts.append(
                    f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="{colour}" '
                    f'stroke-dasharray="4 3"/>'
                )
    line = " ".join(
        f"{left + across.place(step) * _PANEL_WIDTH:.1f},{bottom - up.place(value) * HEIGHT:.1f}"
        for step, value in _thinned(points)
    )
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-width="1.5"/>')
    for step, value in beside:
        x, y = left + across.place(step) * _PANEL_WIDTH, bottom - up.place(value) * HEIGHT
        told = f"validation: {value:.6g} at step {step}"
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#ff7f0e"><title>{escape(told)}</title></circle>')
    told = f"{name}: {points[-1][1]:.6g} at step {last}"
    x, y = left + across.place(last) * _PANEL_WIDTH, bottom - up.place(points[-1][1]) * HEIGHT
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#1f77b4"><title>{escape(told)}</title></circle>')
    return parts


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """No more than _POINTS points: of each share of the steps its lowest and its highest, so that spikes are seen."""
    if len(points) <= _POINTS:
        return list(points)
    shares = _POINTS // 2
    kept: list[tuple[int, float]] = []
    for number in range(shares):
        share = points[number * len(points) // shares : (number + 1) * len(points) // shares]
        ends = {min(share, key=lambda point: point[1]), max(share, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


def _show_steps(steps: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    known = any(step.get("mfu") is not None for step in steps)
    for name in ("step", "loss", "grad norm", "learning rate", "tok/s", *(["MFU"] if known else []), "seconds"):
        table.add_column(name, justify="right")
    for step in steps:
        cells = [str(step["step"]), *(_number(step.get(key)) for key in ("loss", "grad_norm", "learning_rate"))]
        cells.append("-" if step.get("tokens_per_second") is None else show_count(step["tokens_per_second"]))
        if known:
            cells.append("-" if step.get("mfu") is None else f"{step['mfu']:.1%}")
        table.add_row(*cells, f"{step['seconds']:.3g}")
    console.print(table)


def _split(steps: Sequence[Mapping[str, Any]]) -> str:
    """Into what the time went, as shares of all steps but the first, which also sets things up."""
    counted_steps = steps[1:] or steps
    whole = sum(step["seconds"] + step.get("checkpoint_seconds", 0.0) for step in counted_steps)
    parts = {part: sum(step.get(f"{part}_seconds", 0.0) for step in counted_steps) for part in _PARTS}
    told = [f"{part} {spent / whole:.0%}" for part, spent in parts.items() if whole and spent / whole >= 0.005]
    return f"time: {', '.join(told)}" if told else ""


def _some(steps: Sequence[Any], rows: int) -> list[Any]:
    if not rows or len(steps) <= rows:
        return list(steps)
    if rows == 1:
        return [steps[-1]]
    return [steps[number * (len(steps) - 1) // (rows - 1)] for number in range(rows)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _by_step(events: Sequence[Event], kind: str) -> dict[int, Event]:
    return {int(event["step"]): event for event in events if event["kind"] == kind}


def _newest(events: Sequence[Event], kind: str) -> dict[str, Any] | None:
    found = next((event for event in reversed(events) if event["kind"] == kind), None)
    return _without(found, ("kind", "stage", "rank", "group")) if found else None


def _without(event: Event, names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in names}


def _lengths(found: Mapping[str, Any]) -> Lengths:
    """Lengths as JSON has them."""
    pairs = {name: tuple((one, two) for one, two in found[name]) for name in ("buckets", "percentiles")}
    return Lengths(found["smallest"], found["largest"], found["total"], pairs["buckets"], pairs["percentiles"])
