"""Checkpoints that are written beside training: whole or not at all, and what went wrong is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, ROOT, Attempt, Run, train_python

pytestmark = pytest.mark.layout

SETTINGS: dict[str, Any] = {
    "ranks": 2,
    "tuner": "full",
    "learning_rate": 1e-3,
    "steps": 8,
    "checkpoint": {"every_steps": 2, "keep_last": 2, "asynchronous": True},
}


def start(run: Run, *odd: str) -> Attempt:
    """An attempt of the train stage with an odd disk; see odd_disk.py."""
    number = len(run.attempts) + 1
    run.files.attempt("train", number).mkdir(parents=True)
    attempt = Attempt([], [run.files.rank_log("train", number, rank) for rank in range(run.ranks)])
    for rank, log in enumerate(attempt.logs):
        places = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(run.ranks)}
        common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SWIFTLAUNCH_ATTEMPT": str(number)}
        with log.open("wb") as out:
            attempt.processes.append(
                subprocess.Popen(
                    [train_python(), str(HERE / "odd_disk.py"), str(run.files.plan), *odd],
                    env={**os.environ, **common, **places},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    run.attempts.append(attempt)
    return attempt


def published(run: Run) -> list[str]:
    return sorted(path.name for path in run.files.checkpoints("train").glob("step-*"))


def test_a_rank_killed_while_it_saves_leaves_the_checkpoint_before(new_run: Callable[..., Any]) -> None:
    undisturbed = new_run(**SETTINGS).finish()
    run = new_run(**SETTINGS)
    attempt = start(run, "slow", "4", "1")
    run.wait_for_step(5, attempt, 300)  # training goes on beside the save, which never ends
    attempt.kill()
    assert published(run) == ["step-00000002"]
    assert list(run.files.checkpoints("train").glob(".step-00000004.part")), "the save had begun"
    run.finish()
    assert [event["step"] for event in run.events("resumed")] == [2]
    assert run.losses() == undisturbed.losses()
    assert published(run) == ["step-00000006", "step-00000008"]
    assert not list(run.files.checkpoints("train").glob(".*"))
    saves = run.events("checkpoint")
    assert [event["step"] for event in saves] == [2, 4, 6, 8]
    assert all(0 < event["stall_seconds"] <= event["seconds"] for event in saves)
    size = sum(path.stat().st_size for path in Path(saves[-1]["path"]).iterdir() if path.name != "manifest.json")
    assert saves[-1]["bytes"] == size


def test_a_full_disk_is_told_and_the_next_attempt_goes_on(new_run: Callable[..., Any]) -> None:
    run = new_run(**SETTINGS)
    attempt = start(run, "full", "4", "1")
    assert attempt.wait() == [1, 1], attempt.text()
    told = [json.loads(run.files.failure("train", 1, rank, fatal=False).read_text()) for rank in (0, 1)]
    assert "No space left on device" in told[1]["error"]
    assert "step-00000004" in told[1]["error"]
    assert "another rank could not write its part" in told[0]["error"]
    assert published(run) == ["step-00000002"]
    assert not list(run.files.checkpoints("train").glob(".*")), "reports need room"
    run.finish()
    assert [event["step"] for event in run.events("resumed")] == [2]
    assert published(run) == ["step-00000006", "step-00000008"]


def test_a_stop_waits_for_what_is_being_written(new_run: Callable[..., Any]) -> None:
    """And without `asynchronous` a checkpoint is there before the next step."""
    run = new_run(**{**SETTINGS, "steps": 200, "checkpoint": {"every_steps": 1, "keep_last": 3, "asynchronous": False}})
    attempt = run.start()
    run.wait_for_step(3, attempt)
    attempt.processes[1].send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + 120
    while any(process.poll() is None for process in attempt.processes):
        assert time.monotonic() < deadline
        steps = len(run.steps())
        assert len(run.events("checkpoint")) >= steps - 1, "training waits"
        time.sleep(0.2)
    assert attempt.wait() == [75, 75], attempt.text()
    assert published(run)[-1] == f"step-{max(run.steps()):08d}"
