"""The whole chain with the real engines, short: submit, a trainer killed at a random step, and the same numbers."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import assets
from launcher.record import read_events
from launcher.rundir import RunDir

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/sft-smollm2-cpu.toml"
SHORT = (
    "train.steps=6",
    "train.warmup_steps=1",
    "train.checkpoint.every_steps=2",
    "evaluate.limit=8",
    "quantize.calibration_samples=8",
)


class Shell:
    """A user's shell: its own scheduler state and runs folder, the shared environments and models."""

    def __init__(self, folder: Path) -> None:
        site = (assets.folder("site") / "local.toml").read_text(encoding="utf-8")
        self.site = folder / "here.toml"
        self.runs = folder / "runs"
        self.site.write_text(
            site.replace('name = "local"', 'name = "here"').replace(
                '"~/.local/share/swiftlaunch/runs"', json.dumps(str(self.runs))
            )
        )
        self.environ = {**os.environ, "XDG_STATE_HOME": str(folder / "state"), "NO_COLOR": "1"}

    def swiftlaunch(self, *words: str, code: int = 0) -> str:
        finished = subprocess.run(
            [sys.executable, "-m", "launcher", *words], env=self.environ, cwd=ROOT, capture_output=True, text=True
        )
        assert finished.returncode == code, f"{words}: {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
        return finished.stdout

    def submit(self, *settings: str) -> RunDir:
        words = [word for setting in settings for word in ("--set", setting)]
        run_id = self.swiftlaunch("submit", str(RECIPE), "--site", str(self.site), *words).strip()
        return RunDir(self.runs / run_id)

    def until_ended(self, files: RunDir, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            status: dict[str, Any] = json.loads(self.swiftlaunch("status", files.root.name, "--json"))
            if status["state"] not in ("PENDING", "RUNNING"):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(1)


def kill_a_rank_at_step(files: RunDir, step: int, rank: int) -> None:
    """SIGKILL one trainer as soon as the given step is recorded."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        events = read_events(files.events, stage="train")
        if any(event["kind"] == "step" and event["step"] >= step for event in events):
            start = next(event for event in events if event["kind"] == "attempt_started" and event["rank"] == rank)
            os.kill(int(start["pid"]), signal.SIGKILL)
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {read_events(files.events, stage='train')}")


def losses(files: RunDir) -> dict[int, float]:
    """Step -> loss; a step that was done again counts by its last time."""
    return {e["step"]: e["loss"] for e in read_events(files.events, stage="train") if e["kind"] == "step"}


def test_killed_trainer_gives_the_same_run(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    chance = random.Random()
    step, rank = chance.randint(1, 5), chance.randint(0, 1)
    print(f"rank {rank} is killed at step {step}")
    files = shell.submit(*SHORT)
    kill_a_rank_at_step(files, step, rank)
    status = shell.until_ended(files, 1200)
    assert status["state"] == "COMPLETED", json.dumps(status, indent=2)
    stages = {stage["name"]: stage for stage in status["stages"]}
    assert stages["train"]["attempts"] == 2
    assert {"baseline", "train", "export", "evaluate", "quantize", "serve"} <= set(stages)
    assert stages["serve"]["result"]["artifacts"]["answer"].strip()
    assert stages["quantize"]["result"]["metrics"]["size_mib_after"] < stages["export"]["result"]["metrics"]["size_mib"]

    undisturbed = shell.submit(*SHORT, "evaluate.baseline=false")
    deadline = time.monotonic() + 600
    while not undisturbed.result("train").exists():
        assert time.monotonic() < deadline
        time.sleep(0.5)
    shell.swiftlaunch("cancel", undisturbed.root.name)
    assert shell.until_ended(undisturbed, 120)["state"] == "CANCELLED"
    expected, found = losses(undisturbed), losses(files)
    assert sorted(found) == sorted(expected) == list(range(1, 7))
    assert all(abs(found[step] - expected[step]) <= 1e-6 for step in expected), (found, expected)
