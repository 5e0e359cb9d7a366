"""Stay with a run until it ends; what submit, resume, serve and status share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.messages import if_interrupted, print_json, say

if TYPE_CHECKING:
    from launcher.prepare import Prepared
    from launcher.scheduler.admission import Admission


def submit_prepared(ready: Prepared, *, follow: bool, as_json: bool, then: str) -> int:
    """Submit what was prepared and print the run id; then stay with the run, or say `then`. Returns the exit code."""
    from launcher.submission import submit

    run_id = ready.plan.run_id
    with if_interrupted(f"`swiftlaunch status {run_id}` says whether anything was submitted"):
        row = submit(ready, environ=os.environ, on_admission=_tell_admission)
    if not as_json:
        click.echo(run_id)
    if follow:
        return follow_run(row.run_dir, run_id, row.scheduler, as_json=as_json)
    if as_json:
        print_json({**vars(row), "run_dir": str(row.run_dir)})
    say(then)
    return 0


def _tell_admission(answer: Admission) -> None:
    from launcher.view.admission import show_admission
    from launcher.view.console import message_console

    show_admission(answer, message_console())


def follow_run(run_dir: Path, run_id: str, scheduler: str, *, as_json: bool) -> int:
    """Show the run on stderr until it has ended, then its summary (or its status as JSON) on stdout.

    Returns the exit code: 0 if every stage succeeded, else 1.
    """
    from launcher import watch
    from launcher.view.console import data_console, message_console
    from launcher.view.follow import show_while_running
    from launcher.view.summary import show_summary

    with if_interrupted(f"the run goes on; swiftlaunch status {run_id}"):
        statuses = watch.follow(run_dir, watch.INTERVAL_SECONDS[scheduler])
        last = show_while_running(statuses, message_console())
    if as_json:
        print_json(last.to_json())
    else:
        show_summary(last, watch.load_plan(run_dir), data_console())
    return 0 if last.succeeded else 1
