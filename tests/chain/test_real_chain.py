"""The whole chain with the real engines, short: submit, a trainer killed at a random step, and the same numbers."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from tests.chain.shell import RECIPE, Shell, kill_a_rank_at_step, losses

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

SHORT = (
    "train.steps=6",
    "train.warmup_steps=1",
    "train.checkpoint.every_steps=2",
    "evaluate.limit=8",
    "quantize.calibration_samples=8",
)


def test_killed_trainer_gives_the_same_run(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    chance = random.Random()
    step, rank = chance.randint(1, 5), chance.randint(0, 1)
    print(f"rank {rank} is killed at step {step}")
    files = shell.submit(RECIPE, *SHORT)
    kill_a_rank_at_step(files, step, rank)
    status = shell.until_ended(files, 1200)
    assert status["state"] == "COMPLETED", json.dumps(status, indent=2)
    stages = {stage["name"]: stage for stage in status["stages"]}
    assert stages["train"]["attempts"] == 2
    assert {"baseline", "train", "export", "evaluate", "quantize", "serve"} <= set(stages)
    assert stages["serve"]["result"]["artifacts"]["answer"].strip()
    assert stages["quantize"]["result"]["metrics"]["size_mib_after"] < stages["export"]["result"]["metrics"]["size_mib"]

    undisturbed = shell.submit(RECIPE, *SHORT, "evaluate.baseline=false")
    deadline = time.monotonic() + 600
    while not undisturbed.result("train").exists():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    shell.swiftlaunch("cancel", undisturbed.root.name)
    assert shell.until_ended(undisturbed, 120)["state"] == "CANCELLED"
    expected, found = losses(undisturbed), losses(files)
    assert sorted(found) == sorted(expected) == list(range(1, 7))
    assert all(abs(found[step] - expected[step]) <= 1e-6 for step in expected), (found, expected)
