"""Every family of models that Megatron-core is said to train: in, through steps in two layouts, and out again.

Logits after the import are transformers'; an export without a step is the model it was made of, to the bit; losses and
gradient norms do not depend on the layout; what was learnt is in the exported model and in the adapter.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.families import TRAINED

from .conftest import HERE, ROOT, Run, finish_together, train_python, write_run
from .equivalence import LAYOUTS, TP2_SP, difference

pytestmark = pytest.mark.layout

# kind of make_model.py -> the layout of two ranks that divides most of what the family has of its own
FAMILIES: dict[str, dict[str, Any]] = {
    "llama3": TP2_SP,
    "mistral": TP2_SP,
    "qwen2": LAYOUTS["PP2"].layout,
    "glm4": TP2_SP,
    "qwen2_moe": LAYOUTS["TP2+SP EP2"].layout,
    "olmoe": LAYOUTS["TP2+SP EP2"].layout,
    "glm": LAYOUTS["EP2"].layout,
    "deepseek_v2": LAYOUTS["PP2"].layout,
    "deepseek_v3": LAYOUTS["TP2+SP EP2"].layout,
    "gpt_oss": LAYOUTS["TP2+SP EP2"].layout,
}
# PEFT takes an adapter of the experts for that of the dense and shared layers too, which have the same names
BEYOND_PEFT = ("qwen2_moe", "glm", "deepseek_v2", "deepseek_v3")
ELSEWHERE = {"qwen3", "qwen3_moe"}  # test_equivalence.py, test_import.py and test_export.py
TUNERS: dict[str, dict[str, Any]] = {
    "full": {"tuner": "full", "learning_rate": 1e-3},
    "lora": {"tuner": "lora", "learning_rate": 5e-3},
}


def test_each_family_trains_as_transformers_would(tmp_path: Path) -> None:
    models = tmp_path / "models"
    run_script("family_models.py", str(models), *FAMILIES)
    assert {model_type(models / kind) for kind in FAMILIES} | ELSEWHERE == set(TRAINED)
    alone = train(tmp_path / "alone", models, 1)
    divided = train(tmp_path / "divided", models, 2)
    plans = [str(run.files.plan) for run in (*alone.values(), *divided.values())]
    found = json.loads(run_script("family_exports.py", *plans).splitlines()[-1])
    told = dict(zip(plans, found, strict=True))
    wrong = []
    for (kind, tuner), one in alone.items():
        two = divided[kind, tuner]
        apart = difference(two, one)
        looks = [told[str(run.files.plan)] for run in (one, two)]
        print(kind, tuner, FAMILIES[kind], apart, *looks)
        ways = ("before", "exported") if kind in BEYOND_PEFT else ("before", "exported", "adapter")
        equal = [looked.get(way, 0.0) < 1e-4 for looked in looks for way in ways]
        equal += [not looked.get("unequal") for looked in looks]
        learnt = one.losses()[-1] < one.losses()[0] - 0.1 and looks[0]["learnt"] > 0.1
        if not (learnt and apart.loss < 1e-4 and apart.norm < 1e-4 and all(equal)):
            wrong.append((kind, tuner))
    assert not wrong


def train(folder: Path, models: Path, ranks: int) -> dict[tuple[str, str], Run]:
    """A few steps of every family with every tuner, in one process a rank."""
    runs = {
        (kind, tuner): write_run(
            folder / f"{kind}-{tuner}",
            models / kind,
            ranks,
            {},
            {**settings, "layout": layout if ranks > 1 else {}, "steps": 3, "warmup_steps": 0},
        )
        for kind, layout in sorted(FAMILIES.items(), key=lambda family: str(family[1]))  # equal layouts share groups
        for tuner, settings in TUNERS.items()
    }
    finish_together(list(runs.values()), program="family_train.py")
    return runs


def run_script(name: str, *words: str) -> str:
    places = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SWIFTLAUNCH_ATTEMPT": "1"}
    places |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
    out = subprocess.run(
        [train_python(), str(HERE / name), *words],
        env={**os.environ, **places},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    return out.stdout


def model_type(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])
