"""`swiftlaunch logs`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launcher.cli.messages import if_interrupted, say
from launcher.cli.parameters import run_argument

if TYPE_CHECKING:
    from launcher.plan import Plan
    from launcher.registry import RunRow
    from launcher.rundir import RunDir


@click.command(name="logs")
@run_argument
@click.argument("stage", default="")
@click.option("--follow", is_flag=True, help="Go on printing, later attempts too, until it has ended.")
@click.option("--rank", metavar="N", type=click.IntRange(min=0), help="Which rank's log. Default: 0; --follow: all.")
@click.option(
    "--group", metavar="NAME", default="", help="Which group's ranks, in a stage with groups. Default: the first."
)
@click.option("--attempt", metavar="N", type=click.IntRange(min=1), help="Which attempt's log. Default: the newest.")
@click.option("--batch", is_flag=True, help="The log of the job script itself, all attempts, instead of a rank's.")
def command(
    run: RunRow, stage: str, follow: bool, rank: int | None, group: str, attempt: int | None, batch: bool
) -> None:
    """Print a stage's log.

    Without STAGE: the stage that runs, or that failed, or the last one that has a log. Before the first rank has
    started there is only the log of the job script, which --batch shows at any time. Of a sweep, RUN/7 is point 7.

    --follow merges the logs of all ranks and of the job script, each line with who wrote it ("rank 3 | ..."); without
    STAGE of all stages that run or come to run, until the run has ended. With --rank, --group or --batch it follows
    that one log, as it is. --follow --attempt goes on from that attempt.

    \b
    Examples:
      swiftlaunch logs latest train
      swiftlaunch logs latest --follow
    """
    from launcher import watch
    from launcher.rundir import RunDir
    from launcher.view import logs

    plan = watch.load_plan(run.run_dir)
    files = _place(run, RunDir(run.run_dir), stage)
    out = sys.stdout.buffer
    interrupted = f"the run goes on; swiftlaunch status {run.run_id}"
    if follow and rank is None and not group and not batch:
        with if_interrupted(interrupted):
            _follow_all(plan, files, stage, attempt)
        return
    # one that is named needs no scheduler
    name = logs.known_stage(plan, stage) if stage else _choose(plan, files)
    files = _place(run, files, name)
    group = logs.known_group(plan, name, group)
    source = logs.Source(files, name, rank=rank or 0, attempt=attempt, batch=batch, group=group)
    if follow:
        with if_interrupted(interrupted):
            logs.follow(source, out, ended=lambda: _ended(files, name), announce=say)
    else:
        say(f"==> {source.path()}")
        logs.copy(source.path(), out)


def _place(run: RunRow, files: RunDir, stage: str) -> RunDir:
    """Where a stage's logs are: in a sweep, of one that only the best point has, in that point's folder."""
    from launcher.errors import UserError
    from launcher.rundir import RunDir
    from launcher.sweep import read_sweep

    sweep = read_sweep(files)
    if sweep and stage in sweep.each:
        raise UserError(
            f"every point has a stage {stage} with logs of its own",
            hint=f"name the point: swiftlaunch logs {run.run_id}/0 {stage}",
        )
    return RunDir(files.best) if sweep and stage in sweep.best and files.best.exists() else files


def _follow_all(plan: Plan, files: RunDir, stage: str, attempt: int | None) -> None:
    """All ranks of one stage, or of every stage that runs or comes to run."""
    from launcher import watch
    from launcher.view import logs
    from launcher.view.merged import Merged, follow_merged

    status = watch.refresh_or_trouble(files.root)
    if stage or (status.ended and not status.trouble):
        name = logs.choose_stage(plan, status.stages, stage)
        since = {name: attempt or logs.newest_attempt(files, name)}
    else:
        name = ""
        done = {one.name for one in status.stages if one.state.terminal}
        since = {one.name: logs.newest_attempt(files, one.name) + (one.name in done) for one in plan.stages}
    merged = Merged(files, since, named=not name)
    follow_merged(merged, sys.stdout.buffer, ended=lambda: _ended(files, name), announce=say)


def _choose(plan: Plan, files: RunDir) -> str:
    from launcher import watch
    from launcher.view import logs

    return logs.choose_stage(plan, watch.refresh_or_trouble(files.root).stages, "")


def _ended(files: RunDir, stage: str) -> bool:
    """Whether the stage (or without one the run) has ended; not while the scheduler cannot be asked."""
    from launcher import watch

    status = watch.refresh_or_trouble(files.root)
    if status.trouble:
        return False
    return status.ended or any(one.name == stage and one.state.terminal for one in status.stages)
