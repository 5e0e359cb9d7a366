"""Each optimizer takes the steps that torch's or bitsandbytes' own takes on transformers' model, in every layout."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, ROOT, Run, finish_together, train_python, write_run
from .equivalence import ALONE, LAYOUTS, difference
from .test_reshard import attempt

pytestmark = pytest.mark.layout

STEPS = 4
# name -> learning rate and moments; steps of sgd follow the gradient's length, those of lion are all of the rate's size
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95},
    "sgd": {"learning_rate": 0.05, "beta1": 0.9, "beta2": 0.95},
    "lion": {"learning_rate": 3e-4, "beta1": 0.9, "beta2": 0.99},
    "muon": {"learning_rate": 1e-3, "beta1": 0.95, "beta2": 0.95},
    "adamw_8bit": {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95},
}
TOGETHER = ["TP2+SP", "PP2", "DP2"]
# 8-bit states have other blocks where Q, K and V are one matrix: then steps differ by what 8 bits round off
ROUNDED = 5e-3


def settings(name: str, layout: str, **more: Any) -> dict[str, Any]:
    found = {"tuner": "full", "steps": STEPS, "weight_decay": 0.1, "optimizer": name, "schedule": "constant"}
    return {**found, **OPTIMIZERS[name], "layout": LAYOUTS[layout].layout, **more}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[tuple[str, str], Run]:
    """By optimizer and layout."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for layout in (ALONE, *TOGETHER):
        for name in OPTIMIZERS:
            place, ranks = folder / f"run-{len(runs)}", LAYOUTS[layout].ranks
            runs[name, layout] = write_run(place, tiny_model("llama"), ranks, {}, settings(name, layout))
    finish_together([run for (_, layout), run in runs.items() if layout == ALONE])
    finish_together([run for (_, layout), run in runs.items() if layout != ALONE])
    return runs


@pytest.fixture(scope="module")
def wanted(trained: dict[tuple[str, str], Run]) -> dict[str, dict[str, list[float]]]:
    """By optimizer: losses and norms of transformers' model."""
    found = by_transformers([str(trained[name, ALONE].files.plan) for name in OPTIMIZERS])
    return dict(zip(OPTIMIZERS, found, strict=True))


def by_transformers(words: Sequence[str]) -> list[dict[str, list[float]]]:
    out = subprocess.run(
        [train_python(), str(HERE / "hf_train.py"), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        timeout=300,
    )
    return [json.loads(line) for line in out.stdout.splitlines() if line.startswith(b"{")]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_on_transformers_model(
    trained: dict[tuple[str, str], Run], wanted: dict[str, dict[str, list[float]]], name: str
) -> None:
    run = trained[name, ALONE]
    assert run.losses()[-1] < run.losses()[0] - 0.3, "it must learn, or equal losses prove nothing"
    rounded = name == "adamw_8bit"
    assert run.losses() == pytest.approx(wanted[name]["losses"], abs=ROUNDED if rounded else 1e-4)
    assert run.norms() == pytest.approx(wanted[name]["norms"], rel=ROUNDED if rounded else 1e-3)


@pytest.mark.parametrize("layout", TOGETHER)
def test_layouts_agree(trained: dict[tuple[str, str], Run], layout: str) -> None:
    found = {name: difference(trained[name, layout], trained[name, ALONE]) for name in OPTIMIZERS}
    print(layout, {name: str(each) for name, each in found.items()})
    assert all(each.equal for each in found.values()), {name: str(each) for name, each in found.items()}


def test_optimizers_differ(wanted: dict[str, dict[str, list[float]]]) -> None:
    last = sorted(found["losses"][-1] for found in wanted.values())
    assert min(b - a for a, b in pairwise(last)) > 1e-5, last


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_in_the_same_layout_bit_exact(
    tmp_path: Path, tiny_model: Callable[[str], Path], precision: str
) -> None:
    names = [name for name in OPTIMIZERS if name != "adamw"]  # which is stopped in test_resume.py
    checkpoint = {"every_steps": 100, "keep_last": 1, "save_optimizer": True}
    more = {"precision": precision, "steps": 6, "checkpoint": checkpoint}
    runs = {}
    for name in names:
        for way in ("whole", "broken"):
            place = tmp_path / f"{name}-{way}"
            runs[name, way] = write_run(place, tiny_model("llama"), 2, {}, settings(name, "DP2", **more))
    first = [f"{run.files.plan}@1@{2 if way == 'broken' else 0}" for (_, way), run in runs.items()]
    attempt(2, first, tmp_path / "first")
    attempt(2, [f"{runs[name, 'broken'].files.plan}@2@0" for name in names], tmp_path / "second")
    for name in names:
        whole, broken = runs[name, "whole"], runs[name, "broken"]
        assert broken.losses() == whole.losses(), name
        assert weights(broken) == weights(whole), name


def weights(run: Run) -> bytes:
    (file,) = run.files.artifact("train").glob("*.safetensors")
    return bytes(file.read_bytes())
