"""A preference run that was killed and stopped ends as the undisturbed one does, bit for bit."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.record import read_events

from .conftest import Attempt, Run
from .test_preference import made

pytestmark = pytest.mark.layout

STEPS = 6


@pytest.mark.parametrize(
    ("name", "layout", "rows"),
    [
        # the distance's own pass through the policy takes random numbers, as training does
        pytest.param("kto", {}, 20, id="kto-DP2"),
        # the head is trained beside the adapter
        pytest.param("rm", {"tensor": 2, "sequence_parallel": True}, 20, id="rm-TP2"),
        pytest.param("dpo-full-precomputed", {"pipeline": 2}, 1600, id="dpo-full-precomputed-PP2"),
    ],
)
def test_killed_and_stopped_runs_end_bit_exact(
    tmp_path: Path, tiny_model: Callable[[str], Path], name: str, layout: dict[str, Any], rows: int
) -> None:
    settings: dict[str, Any] = {
        "steps": STEPS,
        "checkpoint": {"every_steps": 2, "keep_last": 2, "save_optimizer": True},
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.1, "target_modules": ["all-linear"]},
    }
    undisturbed, run = (
        made(tmp_path / folder, tiny_model("llama"), name, 2, layout, rows=rows, **settings)
        for folder in ("whole", "broken")
    )
    undisturbed.finish()
    attempt = run.start()
    try:
        if rows > 100:
            wait_for_pairs(run, attempt)
            attempt.processes[1].send_signal(signal.SIGUSR2)
            assert attempt.wait() == [75, 75], attempt.text()
            assert not run.steps()
            part = run.files.reference("train").read_bytes()
            attempt = run.start()
        run.wait_for_step(3, attempt)
        attempt.kill()
        reference = run.files.reference("train")
        before = reference.stat().st_mtime_ns if rows > 100 else 0
        assert not before or reference.read_bytes().startswith(part.rstrip(b"]}\n ")), "what was found is kept"
        attempt = run.start()
        run.wait_for_step(4, attempt)
        attempt.processes[1].send_signal(signal.SIGUSR2)
        assert attempt.wait() == [75, 75], attempt.text()
        run.finish()
    finally:
        for each in run.attempts:
            each.kill()
    assert not before or reference.stat().st_mtime_ns == before, "the reference is the model before training"
    assert told(run) == told(undisturbed)
    (weights,) = (path.read_bytes() for path in run.files.artifact("train").glob("*.safetensors"))
    (whole,) = (path.read_bytes() for path in undisturbed.files.artifact("train").glob("*.safetensors"))
    assert weights == whole


def wait_for_pairs(run: Run, attempt: Attempt) -> None:
    """Until the reference's pass has begun."""
    deadline = time.monotonic() + 120
    while not any(event["kind"] == "progress" for event in read_events(run.files.events, stage="train")):
        assert time.monotonic() < deadline, attempt.text()
        assert all(process.poll() is None for process in attempt.processes), attempt.text()
        time.sleep(0.02)


def told(run: Run) -> list[tuple[float, ...]]:
    """What each step reported of learning."""
    names = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected")
    return [tuple(event.get(name) for name in names) for _, event in sorted(run.steps().items())]
