"""`swiftlaunch logs`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launcher.cli.messages import if_interrupted, say
from launcher.cli.parameters import run_argument

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="logs")
@run_argument
@click.argument("stage", default="")
@click.option("--follow", is_flag=True, help="Go on printing, into later attempts too, until the stage has ended.")
@click.option("--rank", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Which rank's log.")
@click.option(
    "--group", metavar="NAME", default="", help="Which group's ranks, in a stage with groups. Default: the first."
)
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="Which attempt's log. Default: the newest.")
@click.option("--batch", is_flag=True, help="The log of the job script itself, all attempts, instead of a rank's.")
def command(run: RunRow, stage: str, follow: bool, rank: int, group: str, attempt: int | None, batch: bool) -> None:
    """Print a stage's log.

    Without STAGE: the stage that runs, or that failed, or the last one that has a log. Before the first rank has
    started there is only the log of the job script, which --batch shows at any time.

    \b
    Example:
      swiftlaunch logs latest train --follow
    """
    from launcher import watch
    from launcher.rundir import RunDir
    from launcher.view import logs

    plan = watch.load_plan(run.run_dir)
    files = RunDir(run.run_dir)
    name = logs.choose_stage(plan, watch.refresh(run.run_dir).stages, stage)
    group = logs.known_group(plan, name, group)
    source = logs.Source(files, name, rank=rank, attempt=attempt, batch=batch, group=group)
    out = sys.stdout.buffer

    def ended() -> bool:
        status = watch.refresh(run.run_dir)
        return status.ended or next(s for s in status.stages if s.name == name).state.terminal

    if follow:
        with if_interrupted(f"the run goes on; swiftlaunch status {run.run_id}"):
            logs.follow(source, out, ended=ended, announce=say)
    else:
        say(f"==> {source.path()}")
        logs.copy(source.path(), out)
