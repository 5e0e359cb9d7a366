"""What the train stage cannot do it refuses at once, before it loads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.errors import WorkerError
from launcher.plan import Environment, Plan, Resources, Stage
from launcher.work import train
from launcher.work.context import from_environment

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"engine": "horovod", "method": "sft", "tuner": "lora"}, "train.engine"),
        ({"engine": "megatron", "method": "grpo", "tuner": "lora"}, "train.method"),
        ({"engine": "megatron", "method": "sft", "tuner": "qlora"}, "train.tuner"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, settings: dict[str, Any], where: str) -> None:
    stage = Stage(
        "train", "train", Resources(1, 1, 1, 0, 1024, 10), Environment("train", "venv", "python"), {"train": settings}
    )
    plan = Plan(
        run_id="r", name="r", run_dir=str(tmp_path), site="local", scheduler="local", user="u", version="0",
        git_sha="", recipe_path="", recipe={}, model={}, data_hash="", stages=(stage,),
    )  # fmt: skip
    with pytest.raises(WorkerError) as refusal:
        train.run(from_environment(plan, "train", {}))
    assert refusal.value.where == where
    assert refusal.value.exit_code == 78
