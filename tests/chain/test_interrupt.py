"""Ctrl-C at any moment of `submit`: nothing is left, or a run that `status` describes and `resume` completes."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from launcher import assets
from launcher.states import State

pytestmark = pytest.mark.local


def site_with_this_python(user: Any) -> str:
    """A site whose environments exist; the stages fail at once, for want of engines, which is fine here."""
    text = (assets.folder("site") / "local.toml").read_text(encoding="utf-8").replace('name = "local"', 'name = "here"')
    text = text.replace('kind = "locked"', f'kind = "venv", python = "{sys.executable}"')
    (user.folder / "here.toml").write_text(text)
    return "here.toml"


def jobs_in_the_table(user: Any) -> list[str]:
    """The comment (run and stage) of every job that the scheduler has."""
    found = list((user.home / ".local/state/swiftlaunch/local").glob("*.sqlite*"))
    table = next((path for path in found if path.suffix in (".sqlite", ".db")), None)
    if table is None:
        return []
    with sqlite3.connect(f"file:{table}?mode=ro", uri=True) as database:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'jobs'").fetchone():
            return []  # interrupted before the table was made
        return [row[0] for row in database.execute("SELECT comment FROM jobs ORDER BY id")]


def runs_on_disk(user: Any) -> list[str]:
    return sorted(path.parent.name for path in user.home.glob(".local/share/swiftlaunch/runs/*/plan.json"))


def status(user: Any, run_id: str) -> dict[str, Any]:
    finished = user.swiftlaunch("status", run_id, "--json")
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


@pytest.mark.parametrize("fraction", [index / 14 for index in range(14)])
def test_ctrl_c(user: Any, fraction: float) -> None:
    site = site_with_this_python(user)
    begun = time.monotonic()
    assert user.swiftlaunch("plan", "recipe.toml", "--site", site).returncode == 0
    usual = time.monotonic() - begun
    # from the start of a process to somewhat after the submission's usual end
    moment = usual * (0.3 + 1.2 * fraction) + random.random() * usual * 0.1
    process = user.start(["submit", "recipe.toml", "--site", site])
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (0, 130, -signal.SIGINT), stderr
    runs, jobs = runs_on_disk(user), jobs_in_the_table(user)
    assert not list(Path(user.home).glob(".local/share/swiftlaunch/runs/.*.part")), "a half written run was left"
    if not runs:
        assert jobs == []
        return
    assert len(runs) == 1
    found = status(user, runs[0])
    names = [stage["name"] for stage in found["stages"]]
    submitted = [stage["name"] for stage in found["stages"] if stage["state"] != State.NOT_SUBMITTED]
    assert [comment.rsplit(":", 1)[1] for comment in jobs] == submitted
    if len(submitted) < len(names):
        assert found["state"] in ("INCOMPLETE", "PENDING", "RUNNING", "FAILED")
        assert user.swiftlaunch("resume", runs[0]).returncode == 0
        jobs = jobs_in_the_table(user)
        stages = Counter(comment.rsplit(":", 1)[1] for comment in jobs)
        assert set(stages) == set(names)
    deadline = time.monotonic() + 60
    while (found := status(user, runs[0]))["state"] in ("PENDING", "RUNNING"):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    assert found["state"] == "FAILED"  # there is no engine in this Python
