"""`swiftlaunch render`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from launcher.cli.parameters import prepared, recipe_argument, set_option, site_option


@click.command(name="render")
@recipe_argument
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="Folder for plan.json and scripts/STAGE.sh; made where it is missing.",
)
@set_option
@site_option
def command(recipe: Path, output: Path, overrides: tuple[str, ...], site_name: str) -> None:
    """Write the job scripts and plan.json without submitting them.

    The files are those that `submit` would hand to the scheduler, byte for byte apart from the run id. Prints the
    path of each file.

    \b
    Example:
      swiftlaunch render recipe.toml --output /tmp/look
    """
    from launcher.record import write_text
    from launcher.rundir import RunDir
    from launcher.sweep import point_files

    ready = prepared(recipe, overrides, site_name)
    files = RunDir(output)
    written = {files.plan: ready.plan.to_json()}
    written.update({files.script(stage): text for stage, text in ready.scripts.items()})
    if ready.placed is not None:
        written[files.sweep] = json.dumps(ready.placed.to_json(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for point, plan in zip(ready.placed.points, ready.point_plans, strict=True):
            written[point_files(files, point).plan] = plan.to_json()
    for path, text in written.items():
        write_text(path, text)
        click.echo(path)
