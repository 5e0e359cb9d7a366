"""Batches, schedules and adapter targets; the checks run in the train environment, where torch is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.layout

HERE = Path(__file__).parent


def test_batches_schedules_and_targets(tiny_model: Callable[[str], Path]) -> None:
    done = subprocess.run(
        [os.environ["SWIFTLAUNCH_TEST_TRAIN_PYTHON"], str(HERE / "batch_checks.py"), str(tiny_model("llama"))],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
