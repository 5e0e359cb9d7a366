"""The plan as a table: what would run where, what it asks for, what it is expected to need."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.plan import Plan, Stage
from launcher.units import show_count, show_mib, show_seconds
from launcher.view.words import engine

WIDE = 116  # columns from which every figure gets a column of its own


def show_plan(plan: Plan, console: Console, *, why_site: str = "") -> None:
    """Print a heading, the stages, totals and warnings."""
    why = f" ({why_site})" if why_site else ""
    console.print(Text(plan.run_id, style="bold"))
    console.print(Text(f"site {plan.site}{why}, {plan.scheduler} scheduler; {_model(plan)}"))
    console.print(plan_table(plan, wide=console.width >= WIDE))
    console.print(Text(f"total: {_total(plan)}"))
    for basis, stages in _bases(plan).items():
        console.print(Text(f"estimates of {', '.join(stages)}: {basis}", style="dim"))
    for warning in plan.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))


def plan_table(plan: Plan, *, wide: bool) -> Table:
    """A row for each stage. Narrow: asked and estimated share a column, worker and engine are left out."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if wide else 1, 0, 0))
    names = ["stage", "worker", "layout", "nodes x tasks", "CPUs", "GPUs", "memory", "est.", "time limit", "est."]
    narrow = ["stage", "layout", "tasks", "CPUs", "GPUs", "memory (est.)", "time limit (est.)"]
    for name in [*names, "environment", "engine"] if wide else [*narrow, "environment"]:
        right = name in ("CPUs", "GPUs", "memory", "est.", "time limit")
        free = name in ("stage", "worker", "layout", "environment", "engine")
        table.add_column(name, justify="right" if right else "left", no_wrap=not free, overflow="fold")
    for stage in plan.stages:
        table.add_row(*(_wide_row(stage) if wide else _narrow_row(stage)))
    return table


def _wide_row(stage: Stage) -> list[Text]:
    need = stage.resources
    cells = [
        stage.name,
        stage.worker,
        stage.layout or "-",
        f"{need.nodes} x {need.tasks_per_node}",
        str(need.cpus_per_task * need.tasks_per_node),
        str(need.gpus_per_node or "-"),
        show_mib(need.memory_mib),
        _memory(stage) or "-",
        show_seconds(need.time_limit_minutes * 60),
        _seconds(stage) or "-",
        _environment(stage),
        engine(stage) or "-",
    ]
    return [Text(cell) for cell in cells]


def _narrow_row(stage: Stage) -> list[Text]:
    need = stage.resources
    cells = [
        stage.name,
        stage.layout or "-",
        f"{need.nodes} x {need.tasks_per_node}",
        str(need.cpus_per_task * need.tasks_per_node),
        str(need.gpus_per_node or "-"),
        _with_estimate(show_mib(need.memory_mib), _memory(stage)),
        _with_estimate(_short_minutes(need.time_limit_minutes), _seconds(stage)),
        _environment(stage),
    ]
    return [Text(cell) for cell in cells]


def _with_estimate(asked: str, estimate: str) -> str:
    return f"{asked} ({estimate})" if estimate else asked


def _memory(stage: Stage) -> str:
    """The estimate for a whole node, as the memory that is asked for: all its ranks together."""
    if stage.estimate.memory_mib_per_rank is None:
        return ""
    return show_mib(stage.estimate.memory_mib_per_rank * stage.resources.tasks_per_node)


def _seconds(stage: Stage) -> str:
    return "" if stage.estimate.seconds is None else show_seconds(stage.estimate.seconds)


def _short_minutes(minutes: int) -> str:
    hours, rest = divmod(minutes, 60)
    return f"{hours}h" * bool(hours) + f"{rest}m" * bool(rest)


def _environment(stage: Stage) -> str:
    kind = stage.environment.kind
    return stage.environment.role if kind == "venv" else f"{stage.environment.role} ({kind})"


def _model(plan: Plan) -> str:
    name = plan.model.get("name") or plan.model.get("path") or "no model"
    count = plan.model.get("parameters")
    return f"{name}, {show_count(count)} parameters" if isinstance(count, (int, float)) else str(name)


def _total(plan: Plan) -> str:
    parts = [f"{len(plan.stages)} stages"]
    known = [stage.estimate.seconds for stage in plan.stages if stage.estimate.seconds is not None]
    if known:
        missing = len(plan.stages) - len(known)
        parts.append(
            f"about {show_seconds(sum(known))} one after another"
            + (f" ({missing} without estimate)" if missing else "")
        )
    limit = sum(stage.resources.time_limit_minutes for stage in plan.stages)
    parts.append(f"at most {show_seconds(limit * 60)} by their time limits")
    gpu_minutes = sum(
        s.resources.nodes * s.resources.gpus_per_node * s.resources.time_limit_minutes for s in plan.stages
    )
    if gpu_minutes:
        expected = [stage.estimate.gpu_hours for stage in plan.stages if stage.estimate.gpu_hours is not None]
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
