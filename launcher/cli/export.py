"""`swiftlaunch export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.following import submit_prepared
from launcher.cli.parameters import follow_option, json_option, run_argument, site_option
from launcher.cli.site_choice import chosen_site

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="export")
@run_argument
@click.option("--step", metavar="N", type=click.IntRange(min=1), help="The checkpoint's step; without it the newest.")
@click.option(
    "--to",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder to write, which jobs must see; without it one in the new run's own folder.",
)
@site_option
@follow_option
@json_option
def command(run: RunRow, step: int | None, to: Path | None, site_name: str, follow: bool, as_json: bool) -> int:
    """Export a checkpoint as a Hugging Face folder.

    Any checkpoint that is kept, also while the run goes on. The export is a run of its own: one process on CPUs, on the
    same site unless --site names another. Prints the new run's id. The checkpoint's files are linked into the new run,
    so the training may go on and delete them.

    \b
    Example:
      swiftlaunch export latest --step 300 --to ~/models/half-way --follow
    """
    from launcher import watch
    from launcher.exports import export_again

    ready = export_again(
        watch.load_plan(run.run_dir),
        chosen_site(site_name or run.site).site,
        step=step,
        to=to.expanduser().absolute() if to is not None else None,
        hint_run=run.run_id,
    )
    run_id = ready.plan.run_id
    then = f"`swiftlaunch status {run_id} --follow` shows how it goes"
    return submit_prepared(ready, follow=follow, as_json=as_json, then=then)
