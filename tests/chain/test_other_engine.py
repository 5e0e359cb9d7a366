"""One recipe, submitted for each training engine: the same curve, also when a rank is killed on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.rundir import RunDir
from tests.chain.shell import RECIPE, Shell, kill_a_rank_at_step, losses

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(3000)]

STEPS = 5
SHORT = (
    f"train.steps={STEPS}",
    "train.tuner=full",  # adapters differ: Megatron-core has one for what transformers has three of
    "train.learning_rate=1e-5",
    "train.warmup_steps=1",
    "train.checkpoint.every_steps=2",
    "evaluate.baseline=false",
    "evaluate.limit=8",
)


def trained(shell: Shell, recipe: Path, engine: str, pipeline: int) -> RunDir:
    """A whole run; others do not train beside it, three models of this size are too much for small machines."""
    files = shell.submit(recipe, *SHORT, f"train.engine={engine}", f"train.layout.pipeline={pipeline}")
    if engine == "deepspeed":
        kill_a_rank_at_step(files, 3, rank=1)
    status = shell.until_ended(files, 900)
    assert status["state"] == "COMPLETED", json.dumps(status, indent=2)
    attempts = next(stage["attempts"] for stage in status["stages"] if stage["name"] == "train")
    assert attempts == (2 if engine == "deepspeed" else 1)
    return files


def test_engines_give_one_curve(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.read_text(encoding="utf-8")
    for first, after in (("[train.lora]", "[train.layout]"), ("[quantize]", "[resources.train]")):
        text = text[: text.index(first)] + text[text.index(after) :]
    recipe.write_text(text, encoding="utf-8")

    runs = {
        engine: trained(shell, recipe, engine, pipeline)
        for engine, pipeline in (("megatron", 2), ("fsdp", 1), ("deepspeed", 1))
    }
    curves = {engine: losses(files) for engine, files in runs.items()}
    for engine, curve in curves.items():
        assert sorted(curve) == list(range(1, STEPS + 1)), engine
        assert curve == pytest.approx(curves["megatron"], abs=1e-4), engine
    right = {
        engine: json.loads(files.result("evaluate").read_text())["metrics"]["perplexity"]
        for engine, files in runs.items()
    }
    assert right == pytest.approx(dict.fromkeys(right, right["megatron"]), rel=1e-3)
