"""`swiftlaunch resubmit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli.messages import say
from launcher.cli.parameters import follow_option, json_option, run_argument
from launcher.cli.resume import resume_run

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="resubmit")
@run_argument
@click.option("--failed", is_flag=True, required=True, help="What has failed, and what waits for it.")
@follow_option
@json_option
def command(run: RunRow, failed: bool, follow: bool, as_json: bool) -> int:
    """Submit again what has failed, and only that.

    As `swiftlaunch resume`, which also submits what was cancelled or never submitted. Of a sweep the points that
    failed are done again, each stage of them as one array; RUN/7 is point 7 alone.

    \b
    Examples:
      swiftlaunch resubmit latest --failed
      swiftlaunch resubmit lr-search/7 --failed --follow
    """
    from launcher import watch

    root, point = watch.part_of_run(run)
    names = {name for name in watch.failed(root) if name.endswith(point)}
    if not names:
        say("nothing to submit: nothing has failed")
        return 0
    return resume_run(run, follow=follow, as_json=as_json, only=names)
