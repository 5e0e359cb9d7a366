"""`swiftlaunch serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from launcher.cli.following import submit_prepared
from launcher.cli.parameters import follow_option, json_option, run_argument, site_option
from launcher.cli.site_choice import chosen_site

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="serve")
@run_argument
@click.option(
    "--minutes",
    metavar="N",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="How long the server stays up; 0: it answers the recipe's prompt and stops.",
)
@site_option
@follow_option
@json_option
def command(run: RunRow, minutes: int, site_name: str, follow: bool, as_json: bool) -> int:
    """Serve again what a run made.

    The server is a run of its own, on the same site unless --site names another. Prints the new run's id.
    `swiftlaunch status` shows the address as soon as the server has answered, and `swiftlaunch cancel` ends it early.
    Of a sweep, RUN/7 is what point 7 made, and RUN what the best one made.

    \b
    Example:
      swiftlaunch serve latest --minutes 30 --follow
    """
    from launcher import watch
    from launcher.prepare import serve_again
    from launcher.rundir import RunDir

    best = RunDir(run.run_dir).best  # of a sweep whose best point is chosen
    ready = serve_again(
        watch.load_plan(best if best.exists() else run.run_dir), chosen_site(site_name or run.site).site, minutes
    )
    run_id = ready.plan.run_id
    then = f"`swiftlaunch status {run_id} --follow` shows the address; `swiftlaunch cancel {run_id}` ends it"
    return submit_prepared(ready, follow=follow, as_json=as_json, then=then)
