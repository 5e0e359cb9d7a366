"""`swiftlaunch plan`."""

from __future__ import annotations

from pathlib import Path

import click

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
    when it would start the first stages, and the fair share. --json prints the plan as jobs would get it.

    \b
    Example:
      swiftlaunch plan recipe.toml --set train.steps=10
    """
    ready = prepared(recipe, overrides, site_name)
    if as_json:
        click.echo(ready.plan.to_json(), nl=False)
        return
    from launcher.view.console import data_console
    from launcher.view.plan_table import show_plan
    from launcher.view.sweep_table import show_sweep_plan

    everything = ready.sweep.everything if ready.sweep else None
    show_plan(ready.plan, data_console(), why_site=ready.why_site, explain=True, everything=everything)
    show_sweep_plan(ready, data_console())
    if ready.plan.scheduler == "slurm":
        from launcher.scheduler.admission import look
        from launcher.view.admission import show_admission

        show_admission(look(ready.plan, ready.scripts), data_console())
