"""`swiftlaunch show`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, run_argument

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="show")
@run_argument
@json_option
def command(run: RunRow, as_json: bool) -> int:
    """Show everything about a run.

    Where it came from, what it made and with which software, its results, and where its files lie.

    RUN is a run id, a unique start of one, a recipe's name (its newest run), or "latest".

    \b
    Example:
      swiftlaunch show latest
    """
    from launcher import watch
    from launcher.view.details import details

    status = watch.refresh_or_trouble(run.run_dir)
    if status.trouble:
        say(f"no answer: {status.trouble}")
    found = details(watch.load_plan(run.run_dir), status)
    if as_json:
        print_json(found)
        return 1 if status.trouble else 0
    from launcher.view.console import data_console
    from launcher.view.details import show_details

    show_details(found, data_console())
    return 1 if status.trouble else 0
