"""An exported reward model is one that transformers loads, with the scores that the next training step reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import finish_together, told_by
from .test_preference import made

pytestmark = pytest.mark.layout

STEPS = 3


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param("rm", {"pipeline": 2}, id="lora-PP2"),
        pytest.param("rm-full", {"tensor": 2, "sequence_parallel": True}, id="full-TP2"),
    ],
)
def test_transformers_gives_the_same_scores(
    tmp_path: Path, tiny_model: Callable[[str], Path], name: str, layout: dict[str, Any]
) -> None:
    run, longer = (
        made(tmp_path / str(steps), tiny_model("llama"), name, 2, layout, steps=steps, schedule="constant")
        for steps in (STEPS, STEPS + 1)
    )
    finish_together([run, longer])
    run.finish("export")
    exported = run.files.artifact("export")
    found = told_by("hf_scores.py", run.files.plan, exported, STEPS)
    told = longer.steps()[STEPS + 1]
    first = longer.steps()[1]
    assert abs(told["rewards/chosen"] - first["rewards/chosen"]) > 0.05, "too little was learnt for this to prove much"
    assert found["chosen"] == pytest.approx(told["rewards/chosen"], abs=1e-4)
    assert found["rejected"] == pytest.approx(told["rewards/rejected"], abs=1e-4)
    assert found["labels"] == 1
    assert found.get("merged_difference", 0.0) < 1e-4
    assert json.loads((exported / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
