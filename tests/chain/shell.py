"""A user's shell on the embedded scheduler, with the real engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launcher import assets
from launcher.record import read_events
from launcher.rundir import RunDir

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/sft-smollm2-cpu.toml"


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

    def submit(self, recipe: Path, *settings: str) -> RunDir:
        words = [word for setting in settings for word in ("--set", setting)]
        run_id = self.swiftlaunch("submit", str(recipe), "--site", str(self.site), *words).strip()
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
    deadline = time.monotonic() + 900
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
