"""`swiftlaunch plan`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from launcher.cli.messages import print_json
from launcher.cli.parameters import json_option, prepared, recipe_argument, set_option, site_option


@click.command(name="plan")
@recipe_argument
@set_option
@site_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], site_name: str, as_json: bool) -> None:
    """Show what a recipe would run, and what it would ask for.

    Checks recipe, site, model and data, decides every open choice and shows the stages with their layout, resources
    and estimates. Writes nothing and submits nothing. Where Slurm can be asked from here, also what it would refuse,
    when it would start the first stages, and the fair share. --json prints the plan as jobs would get it,
    and of a sweep also its points.

    \b
    Example:
      swiftlaunch plan recipe.toml --set train.steps=10
    """
    ready = prepared(recipe, overrides, site_name)
    if as_json:
        if ready.placed is None:
            click.echo(ready.plan.to_json(), nl=False)
        else:
            print_json({**json.loads(ready.plan.to_json()), "sweep": ready.placed.to_json()})
        return
    from launcher.view.console import data_console
    from launcher.view.plan_table import show_plan
    from launcher.view.sweep_table import show_sweep_plan

    everything = ready.sweep.everything if ready.sweep else None
    show_plan(ready.plan, data_console(), why_site=ready.why_site, explain=True, everything=everything)
    show_sweep_plan(ready, data_console())
    if ready.plan.scheduler == "slurm":
        from launcher.prepare import as_submitted
        from launcher.scheduler.admission import look
        from launcher.view.admission import show_admission

        plan, scripts, tasks = as_submitted(ready)
        show_admission(look(plan, scripts, tasks=tasks), data_console())
