"""`swiftlaunch schema`."""

from __future__ import annotations

import click

from launcher.cli.messages import print_json


@click.command(name="schema")
def command() -> None:
    """Print the JSON schema of recipes.

    Editors complete and check TOML with it.

    \b
    Example:
      swiftlaunch schema > recipe.schema.json
    """
    from launcher.recipe import recipe_schema

    print_json(recipe_schema())
