"""What Slurm says of a plan before it is submitted."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from launcher.scheduler.admission import Admission
from launcher.view.words import soon


def show_admission(answer: Admission, console: Console) -> None:
    """A line for the first stages' start and one for the fair share; what Slurm would refuse, each with its advice."""
    if answer.trouble:
        console.print(Text(f"Slurm was not asked: {answer.trouble}", style="dim"))
    for fault in answer.faults:
        console.print(Text.assemble(("submit would refuse: ", "bold red"), f"{fault.where}: {fault.message}"))
        console.print(Text.assemble(("  hint: ", "bold cyan"), fault.hint))
    for note in answer.notes:
        console.print(Text.assemble(("note: ", "bold yellow"), note))
    by_time: dict[str, list[str]] = {}
    for stage, start in answer.starts:
        by_time.setdefault(soon(start), []).append(stage)
    if by_time:
        said = "; ".join(f"{' and '.join(stages)} {when}" for when, stages in by_time.items())
        console.print(Text(f"Slurm would start {said}"))
    if answer.fair_share:
        console.print(Text(answer.fair_share))
