"""The plan as a table: what would run where, what it asks for, what it is expected to need."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.plan import Plan, Stage
from launcher.units import counted, show_count
from launcher.view.words import engine

WIDE = 124  # columns from which every figure gets a column of its own


def show_plan(
    plan: Plan,
    console: Console,
    *,
    why_site: str = "",
    explain: bool = False,
    everything: Sequence[Stage] | None = None,
) -> None:
    """Print a heading, the stages, totals and warnings; with `explain` also what the estimates rest on.

    `everything` is what will run where that is more than the plan's stages: in a sweep the stages of all points.
    """
    why = f" ({why_site})" if why_site else ""
    console.print(Text(plan.name, style="bold"))
    console.print(Text(f"site {plan.site}{why}, {plan.scheduler} scheduler; {_model(plan)}"))
    console.print(plan_table(plan, wide=console.width >= WIDE))
    console.print(Text(f"total: {_total(everything or plan.stages)}"))
    for basis, stages in _bases(plan).items() if explain else ():
        console.print(Text(f"estimates of {', '.join(stages)}: {basis}", style="dim"))
    for warning in plan.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))


def plan_table(plan: Plan, *, wide: bool) -> Table:
    """A row for each stage. Narrow: asked and estimated share a column, worker and engine are left out."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if wide else 1, 0, 0))
    gpus = any(stage.resources.gpus_per_node for stage in plan.stages)
    row = _wide_row if wide else _narrow_row
    names = [name for name in row(plan.stages[0]) if gpus or name != "GPUs"]
    for name in names:
        right = name in ("CPUs", "GPUs", "memory", "est. ", "time limit", "est.")
        free = name in ("stage", "layout", "environment", "engine")
        table.add_column(name, justify="right" if right else "left", no_wrap=not free, overflow="fold")
    for stage in plan.stages:
        cells = row(stage)
        table.add_row(*(Text(cells[name] or "-") for name in names))
    return table


def _wide_row(stage: Stage) -> dict[str, str]:
    need = stage.resources
    return {
        "stage": stage.name,
        "worker": stage.worker,
        "layout": stage.layout,
        "nodes x tasks": f"{need.nodes} x {need.tasks_per_node}",
        "CPUs": str(need.cpus_per_task * need.tasks_per_node),
        "GPUs": str(need.gpus_per_node or ""),
        "memory": _size(need.memory_mib),
        "est. ": _memory(stage),
        "time limit": _duration(need.time_limit_minutes * 60),
        "est.": _seconds(stage),
        "environment": _environment(stage),
        "engine": engine(stage),
    }


def _narrow_row(stage: Stage) -> dict[str, str]:
    need = stage.resources
    return {
        "stage": stage.name,
        "layout": stage.layout,
        "tasks": f"{need.nodes} x {need.tasks_per_node}",
        "CPUs": str(need.cpus_per_task * need.tasks_per_node),
        "GPUs": str(need.gpus_per_node or ""),
        "memory (est.)": _with_estimate(_size(need.memory_mib), _memory(stage)),
        "time (est.)": _with_estimate(_duration(need.time_limit_minutes * 60), _seconds(stage)),
        "environment": _environment(stage),
    }


def _with_estimate(asked: str, estimate: str) -> str:
    return f"{asked} ({estimate})" if estimate else asked


def _memory(stage: Stage) -> str:
    """The estimate for a whole node, as the memory that is asked for: all its ranks together."""
    if stage.estimate.memory_mib_per_rank is None:
        return ""
    return _size(stage.estimate.memory_mib_per_rank * stage.resources.tasks_per_node)


def _seconds(stage: Stage) -> str:
    return "" if stage.estimate.seconds is None else _duration(stage.estimate.seconds)


def _size(mib: float) -> str:
    """As recipes write sizes: "910M", "6G", "1.6G"."""
    return f"{mib:.0f}M" if mib < 1024 else f"{mib / 1024:.1f}".removesuffix(".0") + "G"


def _duration(seconds: float) -> str:
    """As recipes write times, to two figures or so: "40s", "18m", "1h30m"."""
    if seconds < 60:
        return f"{seconds:.0f}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h" * bool(hours) + f"{minutes}m" * bool(minutes)


def _environment(stage: Stage) -> str:
    kind = stage.environment.kind
    return stage.environment.role if kind == "venv" else f"{stage.environment.role} ({kind})"


def _model(plan: Plan) -> str:
    name = plan.model.get("name") or plan.model.get("path") or "no model"
    count = plan.model.get("parameters")
    return f"{name}, {show_count(count)} parameters" if isinstance(count, (int, float)) else str(name)


def _total(stages: Sequence[Stage]) -> str:
    parts = [counted(len(stages), "stage")]
    known = [stage.estimate.seconds for stage in stages if stage.estimate.seconds is not None]
    if known:
        missing = len(stages) - len(known)
        without = f" ({missing} without estimate)" if missing else ""
        parts.append(f"about {_duration(sum(known))} one after another{without}")
    limit = sum(stage.resources.time_limit_minutes for stage in stages)
    parts.append(f"at most {_duration(limit * 60)} by their time limits")
    gpu_minutes = sum(s.resources.nodes * s.resources.gpus_per_node * s.resources.time_limit_minutes for s in stages)
    if gpu_minutes:
        expected = [stage.estimate.gpu_hours for stage in stages if stage.estimate.gpu_hours is not None]
        about = f"about {sum(expected):.1f}, " if expected else ""
        parts.append(f"{about}at most {gpu_minutes / 60:.1f} GPU hours")
    return ", ".join(parts)


def _bases(plan: Plan) -> dict[str, list[str]]:
    """What the estimates rest on, with the stages whose estimates do."""
    bases: dict[str, list[str]] = {}
    for stage in plan.stages:
        if stage.estimate.basis:
            bases.setdefault(stage.estimate.basis, []).append(stage.name)
    return bases
