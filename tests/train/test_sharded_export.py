"""What deepspeed and fsdp leave is what the export stage takes: transformers finds the loss of the next step in it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, ROOT, Run
from .sharded import finish, python_of
from .test_sharded import FSDP, ZERO2, ZERO3, made

pytestmark = pytest.mark.layout

STEPS = 3
ADAPTER: dict[str, Any] = {"learning_rate": 5e-3}
RUNS: dict[str, dict[str, Any]] = {
    "fsdp-full": FSDP,
    "fsdp-full-bf16": {**FSDP, "precision": "bf16"},
    "fsdp-lora": {**FSDP, **ADAPTER, "tuner": "lora"},
    "fsdp-dora": {**FSDP, **ADAPTER, "tuner": "dora"},
    "fsdp-pissa": {**FSDP, **ADAPTER, "tuner": "pissa"},
    "fsdp-qlora": {**FSDP, **ADAPTER, "tuner": "qlora"},
    "zero2-rslora": {**ZERO2, **ADAPTER, "tuner": "rslora"},
    "zero3-full": ZERO3,
    "zero3-lora": {**ZERO3, **ADAPTER, "tuner": "lora"},
}
# NF4 is left behind: the adapter goes into the model as it was; bf16 weights are rounded
ROUGH = {"fsdp-qlora": 0.2, "fsdp-full-bf16": 0.02}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[str, tuple[Run, Run]]:
    """Each run, and the same one with a step more."""
    folder = tmp_path_factory.mktemp("exports")
    found = {}
    for name, settings in RUNS.items():
        common = {
            "schedule": "constant", "checkpoint": {"every_steps": 2, "keep_last": 9, "save_optimizer": True}, **settings
        }  # fmt: skip
        found[name] = tuple(
            made(folder / f"{name}-{steps}", tiny_model, 2, {**common, "steps": steps}) for steps in (STEPS, STEPS + 1)
        )
    finish([run for pair in found.values() for run in pair], "fsdp")
    return found  # type: ignore[return-value]


def test_transformers_agrees_with_the_next_step(runs: dict[str, tuple[Run, Run]]) -> None:
    found = exported([run for run, _ in runs.values()])
    print(json.dumps(found, indent=1))
    for name, (run, longer) in runs.items():
        said = found[run.files.root.name]
        losses, rough = longer.losses(), ROUGH.get(name, 2e-5)
        assert losses[:STEPS] == pytest.approx(run.losses(), abs=1e-6), name
        assert losses[0] - losses[STEPS] > 0.1, "too little was learnt for this to prove anything"
        assert said["loss"] == pytest.approx(losses[STEPS], abs=rough), name
        assert said["checkpoint"]["step"] == 2
        assert said["checkpoint"]["loss"] == pytest.approx(losses[2], abs=rough), name
        if "full" not in name:
            assert said["merged_difference"] < 1e-4, name


def exported(runs: list[Run]) -> dict[str, Any]:
    """What exported_losses.py finds in runs."""
    for run in runs:
        run.files.attempt("export", 1).mkdir(parents=True)
    out = subprocess.run(
        [python_of("fsdp"), str(HERE / "exported_losses.py"), *(str(run.files.plan) for run in runs)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        timeout=400,
        check=True,
    )
    return dict(json.loads(out.stdout.splitlines()[-1]))
