"""`swiftlaunch submit`."""

from __future__ import annotations

from pathlib import Path

import click

from launcher.cli.following import submit_prepared
from launcher.cli.parameters import follow_option, json_option, prepared, recipe_argument, set_option, site_option


@click.command(name="submit")
@recipe_argument
@set_option
@site_option
@follow_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], site_name: str, follow: bool, as_json: bool) -> int:
    """Submit a recipe: a job for every stage.

    Each job waits for the stages before it. Shows the plan, writes the run folder, submits, and prints the run id.
    From then on the run needs nobody: it finishes with this terminal closed. With --follow the stages are shown as
    they go, and at the end the results.

    \b
    Example:
      swiftlaunch submit recipe.toml --site local --follow
    """
    ready = prepared(recipe, overrides, site_name)

    from launcher.units import counted
    from launcher.view.console import message_console
    from launcher.view.plan_table import show_plan

    show_plan(ready.plan, message_console(), why_site=ready.why_site)
    run_id = ready.plan.run_id
    submitted = counted(len(ready.plan.stages), "stage")
    then = f"submitted {submitted}; `swiftlaunch status {run_id} --follow` shows how they go"
    return submit_prepared(ready, follow=follow, as_json=as_json, then=then)
