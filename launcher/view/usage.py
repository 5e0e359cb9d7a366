"""What a run used of what it asked for, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.units import show_mib, show_seconds
from launcher.usage import StageUse, recipe_lines
from launcher.view.words import state_text


def show_usage(stages: Sequence[StageUse], console: Console) -> None:
    """A row for each stage, what was wasted, and what to ask for next time."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    gpus = any(stage.gpu_hours for stage in stages)
    for name in ("stage", "state", "runs", "time of limit", "CPU of asked", "memory of asked", "node h"):
        table.add_column(name, justify="left" if name in ("stage", "state") else "right", overflow="fold")
    if gpus:
        table.add_column("GPU h", justify="right")
    for stage in stages:
        hours = [f"{stage.node_hours:.2f}", *([f"{stage.gpu_hours:.2f}"] if gpus else [])]
        row = [str(stage.runs), _time(stage), _cpu(stage), _memory(stage), *hours]
        table.add_row(Text(stage.name), state_text(stage.state), *map(Text, row))
    console.print(table)
    console.print(Text(_totals(stages, gpus=gpus)))
    if any(stage.peak_mib is None for stage in stages):
        console.print(
            Text("- was not measured: Slurm samples memory every so often, by default every 30 s", style="dim")
        )
    if lines := recipe_lines(stages):
        console.print()
        console.print(Text("next time (a quarter more memory and half more time than this run took):", style="bold"))
        for line in lines:
            console.print(Text(line), soft_wrap=True)


def _time(stage: StageUse) -> str:
    limit = f" of {show_seconds(stage.limit_seconds)}" if stage.limit_seconds else ""
    return f"{show_seconds(stage.seconds)}{limit}"


def _cpu(stage: StageUse) -> str:
    if stage.cpu_seconds is None or not stage.cpu_seconds_given:
        return "-"
    return f"{stage.cpu_seconds / stage.cpu_seconds_given:.0%} of {stage.cpus}"


def _memory(stage: StageUse) -> str:
    asked = f" of {show_mib(stage.memory_mib)}" if stage.memory_mib else ""
    return "-" if stage.peak_mib is None else f"{show_mib(stage.peak_mib)}{asked}"


def _totals(stages: Sequence[StageUse], *, gpus: bool) -> str:
    parts = [f"{sum(stage.node_hours for stage in stages):.2f} node hours"]
    if gpus:
        parts.append(f"{sum(stage.gpu_hours for stage in stages):.2f} GPU hours")
    idle = sum(stage.cpu_seconds_given - stage.cpu_seconds for stage in stages if stage.cpu_seconds is not None)
    parts.append(f"{max(0.0, idle) / 3600:.2f} CPU hours idle")
    if cut := sum(stage.cut_seconds for stage in stages):
        parts.append(f"{show_seconds(cut)} in runs that were cut or failed")
    return f"total: {', '.join(parts)}"
