"""Any checkpoint as a Hugging Face folder: transformers finds in it the loss that the next training step reported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import from_json
from launcher.rundir import RunDir

from .conftest import Run
from .test_export import transformers_view
from .test_preference import made

pytestmark = pytest.mark.layout

CHECKPOINT = {"every_steps": 2, "keep_last": 1, "keep_best": 9}
COMMON: dict[str, Any] = {"steps": 5, "schedule": "constant", "checkpoint": CHECKPOINT}


def exported(run: Run, folder: Path, step: int, *, to: str = "") -> Run:
    """A run that exports a checkpoint of another one, as `swiftlaunch export` makes it."""
    plan = from_json(run.files.plan.read_text())
    files = RunDir(folder)
    checkpoint = files.checkpoints("export") / f"step-{step:08d}"
    shutil.copytree(run.files.checkpoints("train") / checkpoint.name, checkpoint)
    stage = plan.stage("export")
    stage = replace(stage, options={**stage.options, "checkpoint": str(checkpoint), "to": to})
    files.plan.write_text(replace(plan, run_dir=str(folder), stages=(stage,)).to_json())
    return Run(files, 1).finish("export")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        pytest.param("qwen3", {"tuner": "lora", "layout": {"pipeline": 2}}, id="qwen3-lora-PP2"),
        pytest.param("llama", {"tuner": "full", "learning_rate": 1e-3, "layout": {}}, id="llama-full-DP2"),
    ],
)
def test_a_checkpoint_is_the_model_after_its_step(
    new_run: Callable[..., Any], tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    run = new_run(kind, ranks=2, **COMMON, **settings).finish().finish("export")
    half = exported(run, tmp_path / "half", 2, to=str(tmp_path / "model"))
    found = transformers_view(run, tmp_path / "model", step=2)
    assert found["loss"] == pytest.approx(run.losses()[2], abs=2e-5)
    assert abs(run.losses()[2] - run.losses()[0]) > 0.05, "too little was learnt for this to prove anything"
    assert "| Steps | 2 |" in (tmp_path / "model/README.md").read_text()
    assert not (half.files.stage("export") / "trained").exists()
    assert not list(half.files.checkpoints("export").iterdir())

    last = exported(run, tmp_path / "last", 5)
    assert last.result("export")["metrics"] == run.result("export")["metrics"], "bit-equal to the export of the run"


def test_a_reward_model(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    run = made(tmp_path / "run", tiny_model("llama"), "rm", 1, {}, **COMMON).finish().finish("export")
    last = exported(run, tmp_path / "last", 5)
    assert last.result("export")["metrics"] == run.result("export")["metrics"]
    weights = [path.files.artifact("export") / "model.safetensors" for path in (run, last)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
