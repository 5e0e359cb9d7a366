"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from launcher.prepare import Prepared
    from launcher.registry import Registry, RunRow


def find_run(context: click.Context, parameter: click.Parameter, text: str | None) -> RunRow | None:
    """The run that an argument or option means, or "RUN/7", a point of a sweep; None where it was not given."""
    if text is None or context.resilient_parsing:
        return None
    from launcher import watch

    return watch.find_run(registry(), text)


def _complete_run(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Run ids, newest first, for the shell's Tab key."""
    names = ["latest", *(row.run_id for row in registry().runs(limit=100))]
    return [name for name in names if name.startswith(incomplete)]


def registry() -> Registry:
    """The index of runs."""
    from launcher.registry import Registry, registry_path
    from launcher.scheduler import default_state_dir

    return Registry(registry_path(default_state_dir()))


def prepared(recipe: Path, overrides: tuple[str, ...], site_name: str) -> Prepared:
    """Check, plan and render a recipe with this user's home and environment."""
    import os

    from launcher.prepare import prepare

    return prepare(recipe, overrides=overrides, site_name=site_name, home=Path.home(), environ=os.environ)


recipe_argument = click.argument("recipe", type=click.Path(path_type=Path))
run_argument = click.argument("run", callback=find_run, shell_complete=_complete_run)

site_option = click.option(
    "--site",
    "site_name",
    metavar="NAME",
    default="",
    help="Where to run: a site's name or file. See `swiftlaunch sites`.",
)
set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change one value of the recipe, by its TOML path: --set train.steps=10. May be given again.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, for programs.")
follow_option = click.option(
    "--follow", is_flag=True, help="Stay and show every stage until the run has ended; exit 0 only if all succeeded."
)
