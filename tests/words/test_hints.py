"""Hints name a table that the recipe has, where a stage is called otherwise."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import WorkerError
from launcher.plan import Environment, Resources, Stage
from launcher.record import read_json, write_text
from launcher.rundir import RunDir
from launcher.standing import newest_failure
from launcher.work.__main__ import _failed
from launcher.work.context import Context, from_environment
from tests.words.test_failures import OOM_STEP
from tests.words.test_plan import plan

pytestmark = pytest.mark.unit

STAGE = Stage(
    "evaluate-quantized", "evaluate", Resources(1, 2, 1, 0, 64, 60), Environment("train", "venv", "python3"), {}
)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return from_environment(replace(plan(), run_dir=str(tmp_path), stages=(STAGE,)), STAGE.name, {})


def test_in_the_report_of_a_rank(context: Context) -> None:
    assert _failed(context, MemoryError()) == 78
    report = read_json(context.files.failure(STAGE.name, 1, 0, fatal=True))
    assert report["hint"].startswith("raise resources.quantize.memory")


def test_of_a_rank_that_was_killed(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    write_text(files.attempt(STAGE.name, 1) / "step.log", OOM_STEP)
    found = newest_failure(files, STAGE.name, 1)
    assert found is not None
    assert found[1].hint.startswith("raise resources.quantize.memory")


def test_at_the_time_limit(context: Context) -> None:
    context.stop_signal, context.end_time = signal.SIGUSR2, time.time() + 60
    with pytest.raises(WorkerError, match=r"resources\.quantize\.time_limit"):
        context.raise_if_stopping()
