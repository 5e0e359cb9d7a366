"""Jobs that the scheduler has forgotten, as Slurm without accounting does: what the run directory proves counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.plan import Environment, Resources, Stage
from launcher.record import write_json, write_text
from launcher.rundir import RunDir
from launcher.scheduler import Job
from launcher.standing import StageStatus, stage_status
from launcher.states import State

pytestmark = pytest.mark.unit

STAGE = Stage(
    "train", "train", Resources(1, 1, 1, 0, 64, 60), Environment("train", "venv", "python3"), {}, max_attempts=2
)


def forgotten(files: RunDir, *, waits_in_vain: bool = False) -> StageStatus:
    return stage_status(files, STAGE, Job("12"), [], waits_in_vain=waits_in_vain)


@pytest.fixture
def files(tmp_path: Path) -> RunDir:
    found = RunDir(tmp_path)
    write_json(found.jobs, {"train": ["12"]})
    os.utime(found.jobs, (1000, 1000))
    return found


def test_nothing_proves_an_end(files: RunDir) -> None:
    write_text(files.crashed("train", 1), "")  # one crash of two
    write_json(files.failure("train", 1, 0, fatal=False), {"rank": 0, "error": "peer went away"})
    assert forgotten(files).state is State.UNKNOWN


def test_the_last_crash(files: RunDir) -> None:
    for attempt in (1, 2):
        write_text(files.crashed("train", attempt), "")
    assert forgotten(files).state is State.FAILED


def test_a_fatal_error_of_this_submission(files: RunDir) -> None:
    write_json(files.failure("train", 1, 0, fatal=True), {"rank": 0, "error": "no"})
    assert forgotten(files).state is State.FAILED
    after = files.failure("train", 1, 0, fatal=True).stat().st_mtime + 1
    os.utime(files.jobs, (after, after))  # submitted again since
    assert forgotten(files).state is State.UNKNOWN


def test_given_up_or_behind_a_failed_stage(files: RunDir) -> None:
    assert forgotten(files, waits_in_vain=True).state is State.CANCELLED
    write_text(files.cancelled("train"), "")
    assert forgotten(files).state is State.CANCELLED


def test_a_result_is_a_result(files: RunDir) -> None:
    write_json(files.result("train"), {"metrics": {}})
    assert forgotten(files, waits_in_vain=True).state is State.COMPLETED
