"""Sweeps under the local scheduler: arrays, points that share and differ, the best one, single points again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from launcher.record import read_events, read_json
from launcher.rundir import RunDir
from tests.chain.sweeps import Sweeper

pytestmark = pytest.mark.local


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeper:
    return Sweeper(tmp_path, "local", monkeypatch, {})


def test_each_point_to_its_end_and_one_that_failed_again(user: Sweeper) -> None:
    files = user.submit('parameters."train.learning_rate" = [0.5, 0.2, 0.3]\nconcurrency = 2\n')
    found = user.ended(files.root.name)
    assert found["state"] == "FAILED"
    assert found["states"]["baseline"] == "COMPLETED"
    assert found["points"]["train"] == {"COMPLETED": 2, "FAILED": 1}
    assert found["points"]["quantize"] == {"CANCELLED": 1, "COMPLETED": 2}
    board = user.board(files.root.name)
    assert [(point["point"], point["value"]) for point in board] == [(1, 0.8), (2, 0.7), (0, None)]
    assert "this point fails" in user.run("logs", f"{files.root.name}/0", "train")

    arrays = read_json(files.arrays)
    (files.points(0) / "0/mended").touch()
    assert user.run("resubmit", files.root.name, "--failed").split() == [
        "train/0",
        "export/0",
        "evaluate/0",
        "quantize/0",
    ]
    assert user.ended(files.root.name)["state"] == "COMPLETED"
    later = read_json(files.arrays)[len(arrays) :]
    assert [(job["stage"], job["tasks"]) for job in later] == [
        ("train", "0"),
        ("export", "0"),
        ("evaluate", "0"),
        ("quantize", "0"),
    ]
    assert [point["point"] for point in user.board(files.root.name)] == [1, 2, 0]
    assert user.run("resume", files.root.name) == ""
    assert user.status(f"{files.root.name}/0")["states"]["baseline"] == "COMPLETED"  # shared with the others


def test_the_best_point_goes_on(user: Sweeper) -> None:
    sweep = 'parameters."train.learning_rate" = [0.3, 0.125, 0.2, 0.5]\nthen = "best"\n'
    files = user.submit(sweep)
    found = user.ended(files.root.name)
    assert found["points"]["evaluate"] == {"CANCELLED": 1, "COMPLETED": 3}
    assert found["states"]["select"] == found["states"]["quantize"] == "COMPLETED"
    assert files.best.resolve() == (files.points(0) / "2").resolve()
    assert (files.best / "stages/quantize/artifact/made by").read_text() == "quantize 0.2"
    results = {stage["name"]: stage["result"] for stage in found["stages"]}
    assert results["evaluate"]["metrics"]["accuracy"] == 0.8  # the best one's
    board = user.board(files.root.name)
    assert [(point["point"], point["value"], point["best"]) for point in board][:2] == [(2, 0.8, True), (0, 0.7, False)]
    assert {point["value"] for point in board[2:]} == {None}  # one failed, one has no finite metric
    assert not (files.points(0) / "0/stages/quantize/result.json").exists()


def test_no_point_with_a_metric(user: Sweeper) -> None:
    files = user.submit('parameters."train.learning_rate" = [0.5, 0.125]\nthen = "best"\n')
    found = user.ended(files.root.name)
    assert (found["state"], found["states"]["select"], found["states"]["quantize"]) == ("FAILED", "FAILED", "CANCELLED")
    (select,) = [stage for stage in found["stages"] if stage["name"] == "select"]
    assert "none of 2 points has a finite evaluate.accuracy" in select["error"]
    (files.points(0) / "0/mended").touch()
    again = user.run("resume", files.root.name).split()
    assert again == ["train/0", "export/0", "evaluate/0", "select", "quantize"]
    assert user.ended(files.root.name)["state"] == "COMPLETED"
    assert files.best.resolve().name == "0"


def test_what_points_share_is_done_once(user: Sweeper) -> None:
    files = user.submit('parameters."quantize.bits" = [4, 8]\nmetric = "quantize.seconds"\n')
    found = user.ended(files.root.name)
    assert set(found["points"]) == {"quantize"}
    assert [job["stage"] for job in read_json(files.arrays)] == ["quantize"]
    assert (files.points(0) / "1/stages/export/artifact/made by").is_file()
    assert found["state"] == "COMPLETED"


def test_points_go_on_in_further_jobs(user: Sweeper) -> None:
    """Where nothing is requeued every array has continuations, task by task."""
    resume = '[resume]\nmode = "chain"\ncontinuations = 1\nbackoff_seconds = 0\n'
    files = user.submit('parameters."train.learning_rate" = [0.75, 0.2]\n' + resume)
    jobs = read_json(files.arrays)
    assert [job["stage"] for job in jobs] == [
        stage for stage in ("train", "export", "evaluate", "quantize") for _ in range(2)
    ]
    found = user.ended(files.root.name)
    assert found["points"] == {stage: {"COMPLETED": 2} for stage in ("train", "export", "evaluate", "quantize")}
    (train,) = [stage for stage in user.status(f"{files.root.name}/0")["stages"] if stage["name"] == "train"]
    assert (train["attempts"], train["result"]["attempt"]) == (2, 2)
    assert not (files.points(0) / "1/logs/train/attempt-2").exists()
    events = read_events(RunDir(files.points(0) / "0").events, stage="train")
    begun = [event["job_id"] for event in events if event["kind"] == "attempt_started"]
    assert len(set(begun)) == 2  # job ids of tasks: the second is of the second array


def test_jobs_that_the_scheduler_lost_are_submitted_again(user: Sweeper) -> None:
    files = user.submit('parameters."train.learning_rate" = [0.25, 0.2]\n')
    user.until(files.root.name, lambda found: (found["points"]["quantize"] or {}).get("COMPLETED") == 1)
    (table,) = (user.home / ".local/state/swiftlaunch/local").glob("*.sqlite")
    (lost,) = [job["job_id"] for job in read_json(files.arrays) if job["stage"] == "export"]
    with closing(sqlite3.connect(table)) as database, database:
        assert database.execute("DELETE FROM jobs WHERE array_id = ? AND task = 0", (lost,)).rowcount == 1
    assert user.run("resume", files.root.name).split() == ["export/0", "evaluate/0", "quantize/0"]
    (files.points(0) / "0/go on").touch()
    assert user.ended(files.root.name)["state"] == "COMPLETED"
