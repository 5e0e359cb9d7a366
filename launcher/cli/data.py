"""`swiftlaunch data`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, recipe_argument, set_option, site_option
from launcher.cli.site_choice import chosen_site

if TYPE_CHECKING:
    from launcher.dataset import DataReport
    from launcher.recipe import LoadedRecipe


@click.command(name="data")
@recipe_argument
@set_option
@site_option
@json_option
def command(recipe: Path, overrides: tuple[str, ...], site_name: str, as_json: bool) -> None:
    """Check a recipe's data and show how much there is.

    Reads every row, counts them and shows how long they are. Lengths are in tokens where the model is on this site
    and the `tokenizers` package is installed (pip install 'swiftlaunch[data]'), else in characters. Every unusable
    row is reported with file and line, and the exit code is then 2. Generated data (reasoning-gym) has no files to
    check; its sizes and seeds are shown.

    \b
    Example:
      swiftlaunch data recipe.toml
    """
    from launcher.prepare import recipe_file
    from launcher.recipe import load_recipe

    loaded = load_recipe(recipe_file(recipe), overrides)
    data = loaded.recipe.data
    if data is None:
        say("the recipe has no [data]: nothing to check")
        return
    if data.source != "files":
        found = {key: value for key, value in loaded.resolved["data"].items() if value not in (None, (), [], {})}
        if as_json:
            print_json(found)
        else:
            for key, value in found.items():
                click.echo(f"{key:16}  {json.dumps(value) if isinstance(value, dict) else value}")
        return
    files, faults = loaded.data_splits()
    reports = _reports(loaded, site_name, files)
    if as_json:
        print_json({split: asdict(report) for split, report in reports.items()})
    else:
        from launcher.view.console import data_console
        from launcher.view.data_report import show_report

        for split, report in reports.items():
            show_report(split, report, data_console())
    faults = [*faults, *(fault for report in reports.values() for fault in report.faults)]
    if faults:
        from launcher.errors import InputError

        raise InputError(faults)


def _reports(loaded: LoadedRecipe, site_name: str, files: dict[str, tuple[Path, ...]]) -> dict[str, DataReport]:
    from launcher.dataset import check_files

    data, train = loaded.recipe.data, loaded.recipe.train
    assert data is not None
    columns = data.columns.model_dump(exclude_none=True) if data.columns else None
    count = _token_counter(loaded, site_name)
    limit = train.sequence_length if train else None
    return {
        split: check_files(paths, data.format, columns, count_tokens=count, limit_tokens=limit)
        for split, paths in files.items()
        if paths
    }


def _token_counter(loaded: LoadedRecipe, site_name: str) -> Callable[[str], int] | None:
    """Counts a text's tokens with the model's own tokenizer; None where that is not on this machine."""
    from launcher.models import find_model

    model = loaded.recipe.model
    site = chosen_site(site_name).site
    hf_home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    folder = find_model(model.name or model.path or "", Path(site.models_dir), hf_home).path
    try:
        from tokenizers import Tokenizer
    except ImportError:
        say("lengths are in characters: the tokenizers package is not installed (pip install 'swiftlaunch[data]')")
        return None
    if folder is None or not (folder / "tokenizer.json").is_file():
        say(f"lengths are in characters: the model's tokenizer is not on site {site.name}")
        return None
    tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
