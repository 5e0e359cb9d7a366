"""What says how a step is computed does not change what it computes: micro-batches, recomputed activations, bf16."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, finish_together
from .equivalence import ALONE, Cell, difference, written

pytestmark = pytest.mark.layout

BASES = [Cell("llama", "lora", "sft", ALONE), Cell("llama", "full", "dpo", ALONE), Cell("moe", "dora", "sft", ALONE)]
# the cells have 2 micro-batches of 2 samples in a step
WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "micro-batches of 1": {"micro_batch_size": 1},
    "micro-batches of 4": {"micro_batch_size": 4},
    "all activations recomputed": {"activation_recompute": "full"},
    "attention recomputed": {"activation_recompute": "selective"},
}
TOGETHER = ["micro-batches of 1", "all activations recomputed", "attention recomputed"]
DROPOUT = {"lora": {"rank": 8, "alpha": 16, "dropout": 0.2, "target_modules": ["all-linear"]}}
BF16 = {"precision": "bf16"}

Trained = dict[tuple[Cell, str], Run]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Trained:
    """All runs: those of one process, then those of two."""
    runs: Trained = {}
    folder = tmp_path_factory.mktemp("runs")

    def add(cell: Cell, name: str, **settings: Any) -> None:
        place = folder / f"run-{len(runs)}"
        runs[cell, name] = written(cell, place, tiny_model(cell.model), steps=4, **settings)

    for base in BASES:
        for name, settings in WAYS.items():
            add(base, name, **settings)
    add(BASES[0], "dropout", **DROPOUT)
    add(BASES[0], "dropout, recomputed", **DROPOUT, activation_recompute="full")
    finish_together(list(runs.values()))
    alone = set(runs)
    for layout in ("TP2+SP", "PP2 VPP2", "CP2"):
        for base in BASES:
            for name in TOGETHER:
                add(base._replace(layout=layout), name, **WAYS[name])
    for layout in ("TP2+SP", "PP2"):
        add(BASES[0]._replace(layout=layout), "bf16", **BF16)
    finish_together([run for key, run in runs.items() if key not in alone])
    return runs


@pytest.mark.parametrize("layout", [ALONE, "TP2+SP", "PP2 VPP2", "CP2"])
def test_the_curve_is_that_of_one_process(trained: Trained, layout: str) -> None:
    found = {
        key: difference(run, trained[key[0].alone, "as it is"])
        for key, run in trained.items()
        if key[0].layout == layout and key[1] in WAYS
    }
    assert len(found) == len(BASES) * (len(WAYS) if layout == ALONE else len(TOGETHER))
    assert all(each.equal for each in found.values()), {key: str(each) for key, each in found.items()}


def test_what_is_recomputed_drops_the_same_inputs(trained: Trained) -> None:
    once, again = trained[BASES[0], "dropout"], trained[BASES[0], "dropout, recomputed"]
    assert not difference(once, trained[BASES[0], "as it is"]).equal, "dropout has to show"
    assert difference(again, once).equal


@pytest.mark.parametrize("layout", ["TP2+SP", "PP2"])
def test_bf16_follows_fp32(trained: Trained, layout: str) -> None:
    exact, rounded = trained[BASES[0], "as it is"], trained[BASES[0]._replace(layout=layout), "bf16"]
    assert rounded.losses() == pytest.approx(exact.losses(), abs=0.05)
    assert rounded.norms() == pytest.approx(exact.norms(), rel=0.1)
    assert rounded.losses() != exact.losses()
