"""What the tuners DoRA, PiSSA and rsLoRA train and take up again.

Layouts of DoRA are in test_equivalence.py, what all of them export is in test_export.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, finish_together, write_run
from .equivalence import ALONE, LAYOUTS, difference
from .test_optimizers import by_transformers, weights
from .test_reshard import attempt, in_layout

pytestmark = pytest.mark.layout

STEPS = 4
ROWS = ["o_proj", "down_proj"]  # matrices that Megatron-core does not fuse with others, so that PEFT's PiSSA compares
BETAS = {"optimizer": "adamw", "beta1": 0.9, "beta2": 0.95}


def lora(rank: int, alpha: int, **more: Any) -> dict[str, Any]:
    return {"lora": {"rank": rank, "alpha": alpha, "dropout": 0.0, "target_modules": ["all-linear"], **more}}


ALONE_RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "dora at the start": ("qwen3", {"tuner": "dora", "steps": 1, "learning_rate": 1e-30}),
    "dora": ("qwen3", {"tuner": "dora"}),
    "pissa of rows": ("llama", {"tuner": "pissa", **lora(8, 16, target_modules=ROWS)}),
    "pissa": ("llama", {"tuner": "pissa"}),
    "pissa moe": ("moe", {"tuner": "pissa"}),
    "rslora": ("llama", {"tuner": "rslora", **lora(16, 16)}),
    "as rslora": ("llama", {"tuner": "lora", **lora(16, 64)}),  # 64 / 16 = 16 / sqrt(16)
    "dropped": ("llama", {"tuner": "lora", **lora(16, 64, dropout=0.5)}),
}
PISSA_LAYOUTS = {"pissa": ["TP2", "TP2+SP", "PP2 VPP2", "DP2", "CP2"], "pissa moe": ["EP2"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[tuple[str, str], Run]:
    """By name and layout."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}

    def add(name: str, layout: str) -> None:
        kind, settings = ALONE_RUNS[name]
        settings = {"steps": STEPS, **BETAS, "schedule": "constant", "layout": LAYOUTS[layout].layout, **settings}
        place, ranks = folder / f"run-{len(runs)}", LAYOUTS[layout].ranks
        runs[name, layout] = write_run(place, tiny_model(kind), ranks, {}, settings)

    for layout in LAYOUTS:
        for name in ALONE_RUNS:
            if layout == ALONE or layout in PISSA_LAYOUTS.get(name, ()):
                add(name, layout)
    for ranks in (1, 2):
        finish_together([run for run in runs.values() if run.ranks == ranks])
    return runs


@pytest.mark.parametrize("name", PISSA_LAYOUTS)
def test_pissa_is_the_same_in_every_layout(trained: dict[tuple[str, str], Run], name: str) -> None:
    alone = trained[name, ALONE]
    assert alone.losses()[-1] < alone.losses()[0] - 0.3, "it must learn, or equal losses prove nothing"
    found = {layout: difference(trained[name, layout], alone) for layout in PISSA_LAYOUTS[name]}
    assert all(each.equal for each in found.values()), {layout: str(each) for layout, each in found.items()}


def test_steps_are_those_of_peft(trained: dict[tuple[str, str], Run]) -> None:
    start = trained["dora at the start", ALONE].files.artifact("train")
    runs = [trained["dora", ALONE], trained["pissa of rows", ALONE]]
    found = by_transformers([f"{runs[0].files.plan}@{start}", str(runs[1].files.plan)])
    for run, wanted in zip(runs, found, strict=True):
        assert run.losses() == pytest.approx(wanted["losses"], abs=1e-4)
        assert run.norms() == pytest.approx(wanted["norms"], rel=1e-3)


def test_rslora_scales_by_the_root_of_the_rank(trained: dict[tuple[str, str], Run]) -> None:
    assert trained["rslora", ALONE].losses() == trained["as rslora", ALONE].losses()
    config = json.loads((trained["rslora", ALONE].files.artifact("train") / "adapter_config.json").read_text())
    assert config["use_rslora"]
    assert (config["lora_alpha"], config["r"]) == (16, 16)


def test_dropout_reaches_the_adapters(trained: dict[tuple[str, str], Run]) -> None:
    assert not difference(trained["dropped", ALONE], trained["as rslora", ALONE]).equal


STOPPED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "dora": ("llama", {"tuner": "dora"}, ["TP2+SP", "PP2", "TP2+SP"]),
    "pissa": ("llama", {"tuner": "pissa"}, ["TP2+SP", "PP2", "TP2+SP"]),
    "dora moe": ("moe", {"tuner": "dora"}, ["EP2", "DP2", "EP2"]),
    "dora in bf16": ("llama", {"tuner": "dora", "precision": "bf16"}, ["DP2", "DP2", "DP2"]),
    "pissa in bf16": ("llama", {"tuner": "pissa", "precision": "bf16"}, ["PP2", "PP2", "PP2"]),
}


def test_stopped_and_resumed(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    """In other layouts the curve is the same, in the same one the weights are bit-equal."""
    runs: dict[tuple[str, str], Run] = {}
    words: list[list[str]] = [[], [], []]
    for name, (kind, settings, layouts) in STOPPED.items():
        train = {"steps": 8, **BETAS, "learning_rate": 1e-3, **settings}
        for way in ("whole", "broken"):
            run = runs[name, way] = write_run(tmp_path / f"{name} {way}", tiny_model(kind), 2, {}, train)
            for number, layout in enumerate(layouts if way == "broken" else layouts[:1]):
                plan = in_layout(run, number, 2, LAYOUTS[layout].layout)
                stop = (2, 5, 0)[number] if way == "broken" else 0
                words[number].append(f"{plan}@{number + 1}@{stop}")
    for number, each in enumerate(words):
        attempt(2, each, tmp_path / f"attempt-{number}")
    for name, (_, _, layouts) in STOPPED.items():
        whole, broken = runs[name, "whole"], runs[name, "broken"]
        if len(set(layouts)) > 1:
            assert difference(broken, whole).equal, name
        else:
            assert broken.losses() == whole.losses(), name
            assert weights(broken) == weights(whole), name
