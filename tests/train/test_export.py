"""Exported weights are the trained ones: transformers finds in them the loss that the next training step reports."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.layout

HERE = Path(__file__).parent
STEPS = 3


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param("qwen3", {"tuner": "lora", "layout": {"pipeline": 2}}, id="qwen3-lora-PP2"),
        pytest.param(
            "llama",
            {"tuner": "full", "learning_rate": 1e-3, "layout": {"tensor": 2, "sequence_parallel": True}},
            id="llama-full-TP2",
        ),
        pytest.param("llama", {"tuner": "full", "learning_rate": 1e-3, "method": "cpt", "ranks": 1}, id="llama-cpt"),
    ],
)
def test_transformers_agrees_with_the_next_step(
    new_run: Callable[..., Any], kind: str, settings: dict[str, Any]
) -> None:
    settings = {"ranks": 2, "schedule": "constant", **settings}
    run = new_run(kind, steps=STEPS, **settings).finish().finish("export")
    longer = new_run(kind, steps=STEPS + 1, **settings).finish()
    assert longer.losses()[:STEPS] == run.losses()
    assert abs(longer.losses()[STEPS] - longer.losses()[0]) > 0.1, "too little was learnt for this to prove anything"

    exported = run.files.artifact("export")
    found = transformers_view(run, exported)
    assert found["loss"] == pytest.approx(longer.losses()[STEPS], abs=2e-5)
    if settings["tuner"] == "lora":
        assert found["merged_difference"] < 1e-4

    card = (exported / "README.md").read_text()
    metrics = run.result("export")["metrics"]
    assert metrics["weights_sha256"] in card
    assert f"| Steps | {STEPS} |" in card
    assert "test-run" in card
    assert (exported / "tokenizer.json").is_file()
    assert metrics["parameters"] > 100_000
    assert not list(exported.parent.glob(".*")), "nothing half written is left"


def transformers_view(run: Any, exported: Path, step: int = STEPS) -> dict[str, float]:
    """The loss of the step after `step` in what was exported, and how far the adapter's own logits are from it."""
    out = subprocess.run(
        [
            os.environ["SWIFTLAUNCH_TEST_TRAIN_PYTHON"],
            str(HERE / "hf_loss.py"),
            str(run.files.plan),
            str(exported),
            str(step),
        ],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        timeout=120,
    )
    return dict(json.loads(out.stdout.splitlines()[-1]))
