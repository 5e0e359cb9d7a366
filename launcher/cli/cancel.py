"""`swiftlaunch cancel`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli.messages import say
from launcher.cli.parameters import run_argument

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="cancel")
@run_argument
@click.argument("stages", metavar="[STAGE]...", nargs=-1)
def command(run: RunRow, stages: tuple[str, ...]) -> None:
    """Cancel a run, or the named stages of it.

    Stages that wait for a cancelled stage are never started. Prints the ids of the cancelled jobs; what the run has
    written stays, and `swiftlaunch resume` goes on from there. Of a sweep, RUN/7 is point 7 alone.

    \b
    Example:
      swiftlaunch cancel latest quantize
    """
    from launcher import watch
    from launcher.rundir import RunDir
    from launcher.submission import cancel, cancel_without_folder
    from launcher.view.logs import known_stage

    if not stages and not RunDir(run.run_dir).plan.exists():
        for job_id in (ended := cancel_without_folder(run)):
            click.echo(job_id)
        say(f"the folder of {run.run_id} is gone; its jobs are {'cancelled' if ended else 'over'}")
        return
    root, _ = watch.part_of_run(run)
    plan = watch.load_plan(root)
    wanted = [known_stage(plan, stage) for stage in stages] or [stage.name for stage in plan.stages]
    jobs = watch.active_part(run, wanted)
    if not jobs:
        say("nothing to cancel: no such stage waits or runs")
        return
    for job_id in cancel(root, plan, jobs):
        click.echo(job_id)
    names = dict.fromkeys(name.partition("/")[0] for name in jobs)
    say(f"cancelled {', '.join(names)}; `swiftlaunch resume {run.run_id}` goes on from what is saved")
