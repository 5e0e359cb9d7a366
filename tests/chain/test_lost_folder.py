"""A run whose folder was deleted by hand while its jobs go on: what commands say, and how its jobs are ended."""

from __future__ import annotations

import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import assets
from launcher.registry import RunRow
from launcher.scheduler import default_state_dir, open_scheduler
from launcher.scheduler.base import Machine
from launcher.submission import cancel_without_folder

pytestmark = pytest.mark.local


def states(user: Any) -> dict[str, str]:
    """State of every job in the local scheduler's table, by stage."""
    (table,) = (user.home / ".local/state/swiftlaunch/local").glob("*.sqlite")
    with sqlite3.connect(f"file:{table}?mode=ro", uri=True) as database:
        return {
            comment.rsplit(":", 1)[1]: state for comment, state in database.execute("SELECT comment, state FROM jobs")
        }


def test_jobs_of_a_deleted_run_can_be_cancelled(user: Any) -> None:
    python = user.root / "python"
    up = user.root / "up"
    python.write_text(f"#!/bin/bash\ntouch '{up}'\nexec sleep 600\n")
    python.chmod(0o755)
    site = (assets.folder("site") / "local.toml").read_text().replace('"local"', '"here"', 1)
    (user.folder / "here.toml").write_text(site.replace('kind = "locked"', f'kind = "venv", python = "{python}"'))
    run_id = user.swiftlaunch("submit", "recipe.toml", "--site", "here.toml").stdout.strip()
    until(up.exists, user)
    shutil.rmtree(user.home / ".local/share/swiftlaunch/runs" / run_id)
    for command in ("status", "show", "logs", "resume"):
        finished = user.swiftlaunch(command, run_id)
        assert finished.returncode == 2
        assert f"{run_id} is gone" in finished.stderr
        assert f"swiftlaunch cancel {run_id}" in finished.stderr
    finished = user.swiftlaunch("cancel", run_id)
    assert finished.returncode == 0, finished.stderr
    assert len(finished.stdout.split()) == 7  # the waiting stages too
    until(lambda: set(states(user).values()) == {"CANCELLED"}, user)
    assert "its jobs are over" in user.swiftlaunch("cancel", run_id).stderr
    assert "0 runs found" in user.swiftlaunch("runs", "--rebuild").stderr


def test_arrays_are_found_whatever_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    local = open_scheduler("local", state_dir=default_state_dir(), machine=Machine(1, 4, 1000))
    ids = []
    for run, stage in (("r-1", "train.7"), ("r-1", "select"), ("r-1", "stage of a later release"), ("r-12", "train")):
        script = tmp_path / f"{stage}.sh"
        options = f"#SBATCH --comment='swiftlaunch:{run}:{stage}'\n#SBATCH --mem=10M\n#SBATCH --output=/dev/null\n"
        script.write_text(f"#!/bin/bash\n{options}sleep 600\n")
        ids.append(local.submit(script, array="0-1" if "." in stage else ""))
    try:
        row = RunRow("r-1", "r", tmp_path / "gone", "here", "local", time.time())
        assert cancel_without_folder(row) == ids[:3]
        assert not local.jobs(ids)[ids[3]].state.terminal
    finally:
        local.cancel(ids)


def until(true: Any, user: Any) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, states(user)
        time.sleep(0.1)
