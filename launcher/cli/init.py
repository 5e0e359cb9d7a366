"""`swiftlaunch init`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from launcher.cli.messages import say


@click.command(name="init")
@click.argument("file", type=click.Path(path_type=Path), default="recipe.toml")
@click.option(
    "--method",
    metavar="METHOD",
    default="sft",
    show_default=True,
    help="sft, cpt, dpo, kto, simpo, orpo, cpo or rm.",
)
def command(file: Path, method: str) -> None:
    """Write a commented recipe to start from.

    FILE is recipe.toml unless named. A file that is there already is never overwritten.

    \b
    Example:
      swiftlaunch init my-recipe.toml --method sft
    """
    from launcher.errors import UserError
    from launcher.recipe import starter

    text = starter(method)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text)
    except FileExistsError:
        raise UserError("is there already", where=str(file), hint="name another file, or remove this one") from None
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(file)) from error
    click.echo(file)
    say(f"next: edit {file}, then `swiftlaunch plan {shlex.quote(str(file))}`")
