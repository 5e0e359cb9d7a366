"""A run that was killed, stopped or left with a damaged checkpoint ends as the undisturbed run does, bit for bit."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.layout

STEPS = 9
LAYOUTS = [
    pytest.param({"layout": {"pipeline": 2}}, id="PP2"),
    pytest.param({"layout": {}, "packing": True}, id="DP2-packed"),
]


@pytest.mark.parametrize("way", LAYOUTS)
def test_killed_and_stopped_runs_end_bit_exact(new_run: Callable[..., Any], way: dict[str, Any]) -> None:
    settings: dict[str, Any] = {
        "ranks": 2,
        **way,
        "steps": STEPS,
        "checkpoint": {"every_steps": 2, "keep_last": 2, "save_optimizer": True},
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["all-linear"]},  # random states matter
    }
    undisturbed = new_run(**settings).finish()

    run = new_run(**settings)
    killed_after = random.SystemRandom().randint(2, 4)
    attempt = run.start()
    run.wait_for_step(killed_after, attempt)
    attempt.kill()

    attempt = run.start()
    run.wait_for_step(killed_after + 1, attempt)
    signal_tree(attempt.processes[1].pid, signal.SIGUSR2)  # one rank alone: all must agree on the step
    assert attempt.wait() == [75, 75], attempt.text()

    newest = checkpoints(run.files)[-1]
    weights = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    damaged = bytearray(weights.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    weights.write_bytes(damaged)

    run.finish()
    assert f"{weights.name} is damaged" in run.attempts[-1].text()
    assert run.losses() == undisturbed.losses(), f"killed after step {killed_after}"
    assert run.norms() == undisturbed.norms()
    assert run.result()["metrics"]["final_loss"] == undisturbed.result()["metrics"]["final_loss"]
    assert adapter(run.files) == adapter(undisturbed.files)
    assert [path.name for path in checkpoints(run.files)] == ["step-00000008", "step-00000009"]


def test_full_training_in_bf16_resumes_bit_exact(new_run: Callable[..., Any]) -> None:
    settings: dict[str, Any] = {
        "ranks": 2,
        "tuner": "full",
        "precision": "bf16",
        "steps": 5,
        "checkpoint": {"every_steps": 2, "keep_last": 1, "save_optimizer": True},
    }
    undisturbed = new_run(**settings).finish()
    run = new_run(**settings)
    attempt = run.start()
    run.wait_for_step(3, attempt)
    attempt.kill()
    run.finish()
    assert run.losses() == undisturbed.losses()
    assert adapter(run.files) == adapter(undisturbed.files)


def signal_tree(pid: int, number: int) -> None:
    """Signal a process and what it has started, as Slurm does with all processes of a step."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    for each in found:
        os.kill(each, number)


def checkpoints(files: Any) -> list[Path]:
    return sorted(files.checkpoints("train").glob("step-*"))


def adapter(files: Any) -> bytes:
    """The trained weights."""
    (found,) = files.artifact("train").glob("*.safetensors")
    return bytes(found.read_bytes())
