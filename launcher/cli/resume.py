"""`swiftlaunch resume`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from launcher.cli.following import follow_run
from launcher.cli.messages import if_interrupted, print_json, say
from launcher.cli.parameters import follow_option, json_option, run_argument
from launcher.errors import UserError

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="resume")
@run_argument
@follow_option
@json_option
def command(run: RunRow, follow: bool, as_json: bool) -> int:
    """Submit again what has not succeeded and is not in the queue.

    Stages with a result are kept; training goes on from its newest checkpoint. Prints the stages that were submitted.
    Safe to repeat: with nothing to do it does nothing. Of a sweep, RUN/7 is point 7 alone.

    \b
    Example:
      swiftlaunch resume latest --follow
    """
    return resume_run(run, follow=follow, as_json=as_json)


def resume_run(run: RunRow, *, follow: bool, as_json: bool, only: Collection[str] | None = None) -> int:
    """What `resume RUN` and `submit --resume RUN` do, for the stages `only`. Returns the exit code."""
    from launcher import watch
    from launcher.submission import forget_unwritten, resume
    from launcher.units import counted

    if forget_unwritten(run):
        raise UserError(
            f"{run.run_id} was cut before anything was submitted; nothing of it is left", hint="submit its recipe again"
        )
    root, point = watch.part_of_run(run)
    plan = watch.load_plan(root)
    if point and only is None:
        only = [f"{stage.name}{point}" for stage in plan.stages]

    def active_jobs() -> dict[str, str]:
        return watch.active_jobs(root)

    with if_interrupted(f"`swiftlaunch status {run.run_id}` says what was submitted"):
        stages = resume(root, plan, active_jobs, only)
    if not as_json:
        for stage in stages:
            click.echo(stage)
    if not stages:
        say("nothing to resume: every stage has succeeded or is in the queue")
    if follow:
        return follow_run(run.run_dir, run.run_id, run.scheduler, as_json=as_json)
    if as_json:
        print_json({"run_id": run.run_id, "submitted": stages})
    if stages:
        say(f"submitted {counted(len(stages), 'stage')}; `swiftlaunch status {run.run_id} --follow` shows how they go")
    return 0
