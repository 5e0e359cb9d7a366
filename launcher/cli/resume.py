"""`swiftlaunch resume`."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import click

from launcher.cli.following import follow_run
from launcher.cli.messages import if_interrupted, print_json, say
from launcher.cli.parameters import follow_option, json_option, run_argument, set_option, site_option
from launcher.cli.site_choice import chosen_site
from launcher.errors import UserError

if TYPE_CHECKING:
    from launcher.plan import Plan
    from launcher.registry import RunRow
    from launcher.replan import Replanned


@click.command(name="resume")
@run_argument
@set_option
@site_option
@follow_option
@json_option
def command(run: RunRow, overrides: tuple[str, ...], site_name: str, follow: bool, as_json: bool) -> int:
    """Submit again what has not succeeded and is not in the queue.

    Stages with a result are kept; training goes on from its newest checkpoint. Prints the stages that were submitted.
    Safe to repeat: with nothing to do it does nothing. Of a sweep, RUN/7 is point 7 alone.

    With --set what is left of the run is planned anew, for another layout or on other nodes: training goes on from its
    newest checkpoint in the new layout. What would make it another run (model, data, method, optimizer, batch) cannot
    be set. The run must not be in the queue. --site is only for a site whose file has moved.

    \b
    Examples:
      swiftlaunch resume latest --follow
      swiftlaunch resume latest --set train.layout.tensor=2 --set resources.train.nodes=4
    """
    return resume_run(run, follow=follow, as_json=as_json, overrides=overrides, site_name=site_name)


def resume_run(
    run: RunRow,
    *,
    follow: bool,
    as_json: bool,
    only: Collection[str] | None = None,
    overrides: tuple[str, ...] = (),
    site_name: str = "",
) -> int:
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
    again = _planned_again(run, plan, overrides, site_name) if overrides else None
    if point and only is None:
        only = [f"{stage.name}{point}" for stage in plan.stages]

    def active_jobs() -> dict[str, str]:
        return watch.active_jobs(root)

    with if_interrupted(f"`swiftlaunch status {run.run_id}` says what was submitted"):
        stages = resume(root, plan, active_jobs, only, again)
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


def _planned_again(run: RunRow, plan: Plan, overrides: tuple[str, ...], site_name: str) -> Replanned | None:
    """The run with these values, shown; None where they are what the run has."""
    import os
    from pathlib import Path

    from launcher.recipe.fields import shown
    from launcher.replan import replan
    from launcher.rundir import RunDir
    from launcher.view.console import message_console
    from launcher.view.plan_table import show_plan

    files = RunDir(run.run_dir)
    done = [stage.name for stage in plan.stages if files.result(stage.name).exists()]
    site = chosen_site(site_name or plan.site).site
    again = replan(plan, overrides, done=done, site=site, home=Path.home(), environ=os.environ)
    if not again.changes:
        say("--set changes nothing: the run has these values")
        return None
    show_plan(again.plan, message_console())
    for path, (before, after) in again.changes.items():
        say(f"{path}: {shown(before)} -> {shown(after)}")
    return again
