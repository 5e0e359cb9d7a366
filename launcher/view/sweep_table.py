"""A sweep's points: how each stands and how good it is, the best first."""

from __future__ import annotations

import shlex
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.plan import Plan
from launcher.prepare import Prepared
from launcher.rundir import RunDir
from launcher.states import State
from launcher.sweep import SELECT, Sweep, scores
from launcher.units import counted
from launcher.view.follow import show_counts
from launcher.view.words import run_state_text, state_text

_CELLS = 10  # swept keys with a column of their own; more are written into one


def leaderboard(plan: Plan, sweep: Sweep, files: RunDir, states: dict[str, State], state: str) -> dict[str, Any]:
    """The sweep as one JSON value, its points ranked. `states` of points' stages, by name ("train/7")."""
    chosen = files.best.resolve() if files.best.exists() else None
    points = []
    for rank, score in enumerate(scores(files, sweep), start=1):
        point = score.point
        folder = files.points(point.array) / str(point.task)
        own = {stage: states[name].value for stage in sweep.each if (name := f"{stage}/{point.number}") in states}
        points.append(
            {
                "rank": rank if score.value is not None else None,
                "point": point.number,
                "value": score.value,
                "values": point.values,
                "state": _state([State(word) for word in own.values()]).value,
                "stages": own,
                "best": folder.resolve() == chosen,
                "run_dir": str(folder),
            }
        )
    return {
        "run_id": plan.run_id,
        "state": state,
        "metric": sweep.metric,
        "goal": sweep.goal,
        "then": "best" if any(stage.name == SELECT for stage in plan.stages) else "each",
        "points": points,
    }


def _state(states: list[State]) -> State:
    """A point's state: what it does now, or how the first of its stages that did not succeed ended."""
    active = [state for state in states if state in (State.RUNNING, State.REQUEUED)]
    bad = [state for state in states if state.terminal and not state.succeeded and state is not State.CANCELLED]
    rest = [state for state in states if state is not State.COMPLETED]
    return (active or bad or rest or [State.COMPLETED])[0]


def show_leaderboard(found: dict[str, Any], console: Console, *, limit: int) -> None:
    """Print the points, the best first; at most `limit` of them, all with 0."""
    points = found["points"]
    word = "largest" if found["goal"] == "maximize" else "smallest"
    counts: dict[str, int] = {}
    for point in points:
        counts[point["state"]] = counts.get(point["state"], 0) + 1
    console.print(Text.assemble((found["run_id"], "bold"), "  ", run_state_text(found["state"])))
    console.print(Text(f"{counted(len(points), 'point')} by {found['metric']}, {word} first: {show_counts(counts)}"))
    shown = points[: limit or None]
    keys = _swept(points)
    own_columns = len(keys) <= _CELLS
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("rank", justify="right")
    table.add_column("point", justify="right")
    table.add_column(found["metric"], justify="right", no_wrap=True)
    for key in keys if own_columns else ["values"]:
        table.add_column(key, justify="right" if own_columns else "left", overflow="fold")
    table.add_column("state", no_wrap=True)
    for point in shown:
        values = point["values"]
        cells = [_value(values.get(key)) for key in keys]
        if not own_columns:
            cells = [", ".join(f"{key} = {_value(value)}" for key, value in values.items())]
        table.add_row(
            "-" if point["rank"] is None else str(point["rank"]),
            str(point["point"]) + ("*" if point["best"] else ""),
            "-" if point["value"] is None else f"{point['value']:.6g}",
            *cells,
            state_text(State(point["state"])),
        )
    console.print(table)
    if len(shown) < len(points):
        console.print(Text(f"{len(points) - len(shown)} more: --limit 0 shows all", style="dim"))
    if any(point["best"] for point in points):
        console.print(Text("* the point that `select` chose"))
    failed = [point for point in points if State(point["state"]).terminal and point["state"] != "COMPLETED"]
    if failed:
        run = shlex.quote(found["run_id"])
        one = f"swiftlaunch logs {run}/{failed[0]['point']}"
        console.print(Text.assemble("see why one ended: ", (one, "bold")), soft_wrap=True)
        console.print(Text.assemble("do them again: ", (f"swiftlaunch resume {run}", "bold")), soft_wrap=True)


def show_sweep_plan(ready: Prepared, console: Console) -> None:
    """Print what a sweep would do, below its plan."""
    sweep, placed = ready.sweep, ready.placed
    if sweep is None or placed is None:
        return
    table = sweep.table
    what = {"grid": "every combination of", "list": "the n-th values together of", "random": "draws of"}[table.method]
    arrays = len(placed.arrays)
    once = [stage.name for stage in ready.plan.stages if stage.name not in (*placed.each, *placed.best, SELECT)]
    lines = [
        f"sweep: {counted(len(placed.points), 'point')}, {what} {', '.join(table.parameters)}; "
        f"{table.concurrency} at a time in each stage",
        f"for each point: {', '.join(placed.each)}, as {counted(arrays, 'job array')} a stage",
    ]
    if once:
        lines.append(f"once, the same for all points: {', '.join(once)}")
    if placed.best:
        lines.append(f"for the best by {table.metric} ({table.goal}): {', '.join(placed.best)}")
    for line in lines:
        console.print(Text(line))


def _swept(points: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for point in points for key in point["values"]))


def _value(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else str(value)
