"""`swiftlaunch status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli.following import follow_run
from launcher.cli.messages import print_json
from launcher.cli.parameters import follow_option, json_option, run_argument

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="status")
@run_argument
@follow_option
@json_option
def command(run: RunRow, follow: bool, as_json: bool) -> int:
    """Show how a run stands, a line for each stage.

    RUN is a run id, a unique start of one, a recipe's name (its newest run), or "latest". A stage that waits says why,
    what can be done about it, and when the scheduler expects to start it. Where the scheduler does not answer, the
    run's files are shown, and the exit code is 1.

    \b
    Example:
      swiftlaunch status latest --follow
    """
    if follow:
        return follow_run(run.run_dir, run.run_id, run.scheduler, as_json=as_json)
    from launcher import watch

    status = watch.refresh_or_trouble(run.run_dir)
    code = 1 if status.trouble else 0
    if as_json:
        print_json(status.to_json())
        return code
    from launcher.view.console import data_console
    from launcher.view.follow import show_status

    show_status(status, data_console())
    return code
