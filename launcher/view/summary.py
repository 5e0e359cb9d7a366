"""The end of a run: what it reached, what it took, where everything lies, and what to type next."""

from __future__ import annotations

import shlex
import textwrap
from pathlib import PurePath

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.plan import Plan
from launcher.rundir import RunDir
from launcher.standing import RunStatus, StageStatus
from launcher.units import show_seconds
from launcher.view.follow import note
from launcher.view.results import AFTER, BEFORE, QUANTIZED, comparisons
from launcher.view.words import run_state_text, state_text


def show_summary(status: RunStatus, plan: Plan, console: Console) -> None:
    """Print the summary of a run that has ended."""
    console.print()
    console.print(Text.assemble((status.run_id, "bold"), "  ", run_state_text(status.state), _took(status)))
    if rows := comparisons(status, plan):
        console.print()
        names = [name for name in (BEFORE, AFTER, QUANTIZED) if any(name in row.values for row in rows)]
        table = _table("", *names, right=names)
        for row in rows:
            table.add_row(row.name, *(Text(row.values.get(name, "-")) for name in names))
        console.print(table)
    console.print()
    table = _table("stage", "state", "time", "result", right=["time"])
    for stage in status.stages:
        words = Text(" ".join(note(stage).splitlines()), overflow="fold")
        table.add_row(Text(stage.name), state_text(stage.state), _time(stage), words)
    console.print(table)
    for stage in status.stages:
        _show_answer(stage, console)
    console.print()
    _show_places(status, console)
    _show_next(status, plan, console)


def _show_answer(stage: StageStatus, console: Console) -> None:
    served = stage.result.get("artifacts", {}) if stage.result else {}
    if "answer" not in served:
        return
    console.print()
    console.print(Text(f"served by {served['engine']}:", style="bold"))
    for text, style in ((f"> {served['prompt']}", "dim"), (str(served["answer"]).strip(), "")):
        console.print(Text(textwrap.indent(text, "  "), style=style), soft_wrap=True)


def _show_places(status: RunStatus, console: Console) -> None:
    files = RunDir(status.run_dir)
    places = [("run", files.root)]
    places += [
        (stage.name, folder)
        for stage in status.stages
        for folder in (files.artifact(stage.name), RunDir(files.best).artifact(stage.name))  # of a sweep: the best's
        if stage.result is not None and folder.is_dir()
    ]
    kept = (("tensorboard", files.tensorboard), ("wandb", files.wandb), ("mlflow", files.mlflow))
    places += [(name, folder) for name, folder in kept if folder.is_dir()]
    width = max(len(name) for name, _ in places)
    for name, path in places:
        # whole on one line, whatever the width: a path is there to be copied
        console.print(Text(f"{name.ljust(width)}  {path}"), soft_wrap=True)


def _show_next(status: RunStatus, plan: Plan, console: Console) -> None:
    commands: list[tuple[str, str]] = []
    for stage in status.stages:
        if stage.points:
            continue
        if stage.error or (stage.state.terminal and not stage.state.succeeded and stage.attempts):
            commands.append((f"see why {stage.name} ended", f"swiftlaunch logs {status.run_id} {stage.name}"))
    if any(stage.points for stage in status.stages):
        commands.append(("compare the points", f"swiftlaunch sweep {status.run_id}"))
    if not status.succeeded:
        commands.append(("go on from what is saved", f"swiftlaunch resume {status.run_id}"))
    elif any(stage.worker == "serve" for stage in plan.stages):
        commands.append(("serve it again", f"swiftlaunch serve {status.run_id} --minutes 60"))
    if offline := sorted(RunDir(status.run_dir).wandb.glob("offline-run-*")):
        sync = f"{_wandb(plan)} sync {' '.join(shlex.quote(str(folder)) for folder in offline)}"
        commands.append(("send it to W&B where there is internet", sync))
    for what, line in commands:
        console.print(Text.assemble(f"{what}: ", (line, "bold")), soft_wrap=True)


def _wandb(plan: Plan) -> str:
    """The program that came with the library that wrote the files."""
    python = next((stage.environment.python for stage in plan.stages if stage.worker == "train"), "")
    beside = PurePath(python).with_name("wandb")
    return shlex.quote(str(beside)) if beside.is_absolute() else "wandb"


def _table(*names: str, right: list[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name not in ("result", ""))
    return table


def _time(stage: StageStatus) -> str:
    """Wall time of the stage, else what the worker measured of itself."""
    if stage.started is not None and stage.ended is not None:
        return show_seconds(stage.ended - stage.started)
    seconds = stage.result.get("metrics", {}).get("seconds") if stage.result else None
    return "-" if seconds is None else show_seconds(seconds)


def _took(status: RunStatus) -> str:
    begun = [stage.submitted for stage in status.stages if stage.submitted is not None]
    ended = [stage.ended for stage in status.stages if stage.ended is not None]
    return f" in {show_seconds(max(ended) - min(begun))}" if begun and ended else ""
