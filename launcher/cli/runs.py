"""`swiftlaunch runs`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
def command(limit: int, rebuild: bool, as_json: bool) -> int:
    """List runs, newest first, with how each of them stands.

    The scheduler is asked once for all of them.

    \b
    Example:
      swiftlaunch runs --limit 5
    """
    if rebuild:
        _rebuild()
    known = registry().runs(limit)
    states, trouble = _states(known)
    rows = [{**vars(row), "run_dir": str(row.run_dir), "state": states[row.run_id]} for row in known]
    if trouble:
        say(f"no answer: {trouble}")
    if as_json:
        print_json(rows)
    elif rows:
        from launcher.view.console import data_console
        from launcher.view.runs_table import show_runs

        show_runs(rows, data_console())
    else:
        say("no runs known; `swiftlaunch submit RECIPE` starts one, --rebuild finds those of a lost index")
    return 1 if trouble else 0


def _states(rows: Sequence[RunRow]) -> tuple[dict[str, str], str]:
    """How each run stands in one word, and why the scheduler could not be asked, "" where it answered.

    UNKNOWN where the run's folder or its scheduler does not answer. One question for all runs to each scheduler.
    """
    from launcher.rundir import RunDir

    states: dict[str, str] = {}
    asked: dict[Path, str] = {}
    for row in rows:
        files = RunDir(row.run_dir)
        stages = [script.stem for script in files.script("*").parent.glob("*.sh")]
        if stages and all(files.result(stage).exists() for stage in stages):
            states[row.run_id] = "COMPLETED"  # nobody has to be asked: a list of old runs costs little
        else:
            asked[row.run_dir] = row.run_id
    trouble = ""
    if asked:
        from launcher import watch
        from launcher.standing import RunStatus

        for run_dir, found in watch.refresh_all(asked).items():
            if isinstance(found, RunStatus):
                states[asked[run_dir]] = found.state
                trouble = trouble or found.trouble
            else:
                states[asked[run_dir]] = "UNKNOWN"
    return states, trouble


def _rebuild() -> None:
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
