"""`swiftlaunch usage`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, run_argument

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="usage")
@run_argument
@json_option
def command(run: RunRow, as_json: bool) -> None:
    """Show what a run used, and what to ask for next time.

    Time, CPUs and memory of every stage against what it asked for; requeued and resubmitted runs add up. Memory is
    per node: the largest process times the tasks of a node. Below it stand lines for the recipe: a quarter more
    memory than the peak, up to a whole GiB; half more time than it took and three minutes, up to five; fewer CPUs
    where less than half were used and no GPU.

    \b
    Example:
      swiftlaunch usage latest
    """
    from launcher import usage, watch
    from launcher.scheduler.base import NotKept

    plan = watch.load_plan(run.run_dir)
    try:
        stages = usage.usage(plan, run.run_dir)
    except NotKept as error:
        stages = []
        say(error.message)
    if as_json:
        print_json(usage.to_json(plan, stages))
    elif stages:
        from launcher.view.console import data_console
        from launcher.view.usage import show_usage

        show_usage(stages, data_console())
    else:
        say(f"nothing is known of what {run.run_id} used")
