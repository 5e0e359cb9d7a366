"""A rank of a real training run that stops dead is found by the other one, which waits for it in a collective."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.failures import HANG, first_failure
from launcher.plan import Resume, from_json

pytestmark = pytest.mark.layout


def test_a_stopped_rank_is_found(new_run: Callable[..., Any]) -> None:
    run = new_run(ranks=2, layout={"pipeline": 2}, steps=100_000)
    plan = from_json(run.files.plan.read_text())
    patience = Resume(hang_factor=3.0, hang_floor_seconds=2.0, hang_start_seconds=120.0)
    plan = replace(plan, stages=tuple(replace(stage, resume=patience) for stage in plan.stages))
    run.files.plan.write_text(plan.to_json())
    attempt = run.start()
    run.wait_for_step(8, attempt)
    attempt.processes[1].send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while attempt.processes[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert attempt.processes[0].poll() == 1, attempt.text()
    failure = first_failure(Path(run.files.attempt("train", 1)), "train")
    assert failure is not None
    assert (failure.kind, failure.rank) == (HANG, 1)
    assert "rank 1 without an answer" in failure.error
    assert "all_reduce" in (waiting := run.files.stacks("train", 1, 0).read_text()) or "loop.py" in waiting
    stopped = run.files.stacks("train", 1, 1).read_text()
    assert "(stopped)" in stopped
    assert "loop.py" in stopped  # by py-spy, which the train environment has


def test_training_stops_in_time_for_a_last_save(new_run: Callable[..., Any]) -> None:
    """Nobody is told anything: there is a signal neither from a scheduler nor from a job script."""
    run = new_run(steps=100_000, checkpoint={"every_steps": 100_000, "keep_last": 1, "save_optimizer": True})
    attempt = run.start(end_time=time.time() + 105)  # 30 s are kept, and 60 s for a save that was never measured
    assert attempt.wait(100) == [75], attempt.text()
    assert run.files.saved("train", 1).exists()
    newest = max(run.steps())
    assert run.events("checkpoint")[-1]["step"] == newest
