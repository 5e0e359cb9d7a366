"""`swiftlaunch runs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, registry

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="runs")
@click.option(
    "--limit", metavar="N", type=click.IntRange(min=0), default=20, show_default=True, help="Newest N; 0: all."
)
@click.option(
    "--rebuild", is_flag=True, help="First read the run folders of every site again: the index is only a copy."
)
@json_option
def command(limit: int, rebuild: bool, as_json: bool) -> None:
    """List runs, newest first, with how each of them stands.

    \b
    Example:
      swiftlaunch runs --limit 5
    """
    if rebuild:
        _rebuild()
    rows = [_row(row) for row in registry().runs(limit)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        say("no runs known; `swiftlaunch submit RECIPE` starts one, --rebuild finds those of a lost index")
        return
    from launcher.view.console import data_console
    from launcher.view.runs_table import show_runs

    show_runs(rows, data_console())


def _row(row: RunRow) -> dict[str, Any]:
    return {**vars(row), "run_dir": str(row.run_dir), "state": _state(row)}


def _state(row: RunRow) -> str:
    """How a run stands in one word; UNKNOWN where its folder or its scheduler does not answer."""
    from launcher.rundir import RunDir

    files = RunDir(row.run_dir)
    stages = [script.stem for script in files.script("*").parent.glob("*.sh")]
    if stages and all(files.result(stage).exists() for stage in stages):
        return "COMPLETED"  # nobody has to be asked: a list of old runs costs little
    from launcher import watch
    from launcher.errors import SwiftlaunchError

    try:
        return watch.refresh(row.run_dir).state
    except SwiftlaunchError:
        return "UNKNOWN"


def _rebuild() -> None:
    from pathlib import Path

    from launcher.cli.site_choice import all_sites
    from launcher.errors import InputError
    from launcher.sites import load_site

    # folders of runs that are known now, then those of the sites: a site file may lie anywhere
    roots = {row.run_dir.parent: None for row in registry().runs()}
    for file in all_sites():
        try:
            roots[Path(load_site(file.path, Path.home()).runs_dir)] = None
        except InputError as error:
            say(f"left out {file.path}: {error.message}")
    say(f"{registry().rebuild(list(roots))} runs found in {len(roots)} folders")
