"""`swiftlaunch metrics`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, run_argument

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="metrics")
@run_argument
@click.option("--rows", metavar="N", type=click.IntRange(min=0), default=20, show_default=True, help="Steps; 0: all.")
@click.option("--plot", metavar="FILE.svg", type=click.Path(dir_okay=False, path_type=Path), help="Also draw them.")
@click.option("--csv", "as_csv", is_flag=True, help="Print every step as CSV on stdout.")
@json_option
def command(run: RunRow, rows: int, plot: Path | None, as_csv: bool, as_json: bool) -> None:
    """Show what training measured, step by step.

    Loss, gradient norm, learning rate, tokens per second, the share of the GPUs' rate (MFU), where the time went,
    memory of the fullest rank, the slowest rank, loss spikes with their samples, the lengths of the samples.
    docs/metrics.md says what each figure is. It reads the run's files alone, also while it runs; --json and --csv have
    every step.

    \b
    Examples:
      swiftlaunch metrics latest --plot curves.svg
      swiftlaunch metrics latest --csv > steps.csv
    """
    from launcher import watch
    from launcher.record import write_text
    from launcher.rundir import RunDir
    from launcher.view.metrics import metrics, metrics_svg, show_metrics, to_csv

    plan = watch.load_plan(run.run_dir)
    stage = next((stage.name for stage in plan.stages if stage.worker == "train"), "")
    found = metrics(RunDir(run.run_dir), run.run_id, stage) if stage else None
    if found is None or not found["steps"]:
        say(f"{run.run_id} has trained no step yet" if stage else f"{run.run_id} trains nothing")
    elif plot is not None:
        write_text(plot, metrics_svg(found))
        say(f"drawn: {plot}")
    if found is None:
        return
    if as_json:
        print_json(found)
    elif as_csv:
        click.echo(to_csv(found), nl=False)
    elif found["steps"]:
        from launcher.view.console import data_console

        show_metrics(found, data_console(), rows=rows)
