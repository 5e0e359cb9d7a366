"""`swiftlaunch sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, run_argument
from launcher.errors import UserError

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="sweep")
@run_argument
@click.option("--limit", metavar="N", type=click.IntRange(min=0), default=20, show_default=True, help="Best N; 0: all.")
@click.option("--plot", metavar="FILE.svg", type=click.Path(dir_okay=False, path_type=Path), help="Also draw it.")
@json_option
def command(run: RunRow, limit: int, plot: Path | None, as_json: bool) -> int:
    """Show the points of a sweep, the best first.

    A line for each point: its values, its metric as soon as the stage that measures it has ended, and how it stands.
    `status`, `show`, `logs`, `cancel` and `resume` take a single point as RUN/NUMBER. --plot writes a picture with a
    panel for each swept key.

    \b
    Examples:
      swiftlaunch sweep lr-search --plot lr.svg
      swiftlaunch logs lr-search/7 train
    """
    from launcher import watch
    from launcher.record import write_text
    from launcher.rundir import RunDir
    from launcher.sweep import read_sweep
    from launcher.view.sweep_table import leaderboard

    root, _ = watch.part_of_run(run)
    files = RunDir(root)
    sweep = read_sweep(files)
    if sweep is None:
        raise UserError(f"{run.run_id} is no sweep", hint="its recipe has no [sweep]")
    status, points = watch.refresh_points(root)
    found = leaderboard(watch.load_plan(root), sweep, files, points, status.state)
    if plot is not None:
        from launcher.view.sweep_plot import sweep_svg

        write_text(plot, sweep_svg(found))
        say(f"drawn: {plot}")
    if status.trouble:
        say(f"no answer: {status.trouble}")
    if as_json:
        print_json(found)
    else:
        from launcher.view.console import data_console
        from launcher.view.sweep_table import show_leaderboard

        show_leaderboard(found, data_console(), limit=limit)
    return 1 if status.trouble else 0
