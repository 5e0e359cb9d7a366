"""Losses of preference methods equal TRL's; the checks run in the train environment, where torch is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import HERE, ROOT, train_python

pytestmark = pytest.mark.layout


def test_losses_equal_those_of_trl(tiny_model: Callable[[str], Path]) -> None:
    trl = os.environ["SWIFTLAUNCH_TEST_TRL"]
    assert (Path(trl) / "trl").is_dir(), "TRL is not there: make engines"
    done = subprocess.run(
        [train_python(), str(HERE / "trl_checks.py"), str(tiny_model("llama"))],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{trl}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"
