"""NEFTune's noise is that of a sample and a step, whatever the layout; exchanges that overlap compute the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, finish_together, write_run
from .equivalence import ALONE, LAYOUTS, difference
from .test_optimizers import weights
from .test_reshard import attempt

pytestmark = pytest.mark.layout

NOISE: dict[str, Any] = {"neftune_alpha": 15.0}
FULL: dict[str, Any] = {"tuner": "full", "learning_rate": 1e-3}
OVERLAP: dict[str, Any] = {"overlap": "on"}
BF16: dict[str, Any] = {"precision": "bf16"}
# name -> model, settings, and what differs from them where there are two ranks
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    "plain": ("llama", {}, {}, []),
    "noise": ("llama", NOISE, {}, ["TP2+SP", "PP2 VPP2", "CP2", "DP2"]),
    "noise in packs": ("llama", {**NOISE, "packing": True}, {}, ["TP2+SP", "CP2", "DP2"]),
    "overlap of all weights": ("qwen3", FULL, OVERLAP, ["DP2", "CP2"]),
    "overlap of adapters": ("llama", {"tuner": "dora"}, OVERLAP, ["DP2"]),
    "overlap of experts": ("moe", {}, OVERLAP, ["DP2", "EP2"]),
}
STEPS = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[tuple[str, str], Run]:
    """By case and layout."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for layout in LAYOUTS:
        for name, (kind, settings, more, layouts) in CASES.items():
            if layout == ALONE or layout in layouts:
                train = {"steps": STEPS, **settings, **({} if layout == ALONE else more)}
                ranks, sizes = LAYOUTS[layout]
                place = folder / f"run-{len(runs)}"
                runs[name, layout] = write_run(place, tiny_model(kind), ranks, {}, {**train, "layout": sizes})
    for ranks in (1, 2):
        finish_together([run for run in runs.values() if run.ranks == ranks])
    return runs


@pytest.mark.parametrize("name", [name for name in CASES if name != "plain"])
def test_layouts_agree(trained: dict[tuple[str, str], Run], name: str) -> None:
    found = {layout: difference(trained[name, layout], trained[name, ALONE]) for layout in CASES[name][3]}
    assert all(each.equal for each in found.values()), {layout: str(each) for layout, each in found.items()}


def test_noise_shows_from_the_first_step(trained: dict[tuple[str, str], Run]) -> None:
    with_noise, without = trained["noise", ALONE].losses(), trained["plain", ALONE].losses()
    assert all(abs(a - b) > 1e-2 for a, b in zip(with_noise, without, strict=True))


def test_weights_are_whole_and_noise_the_same_after_a_resume(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    cases = {"noise": (NOISE, "PP2"), "overlap": ({**FULL, **OVERLAP}, "DP2"), "bf16": ({**OVERLAP, **BF16}, "DP2")}
    runs = {}
    for name, (settings, layout) in cases.items():
        for way in ("whole", "broken"):
            train = {"steps": 6, **settings, "layout": LAYOUTS[layout].layout}
            runs[name, way] = write_run(tmp_path / f"{name}-{way}", tiny_model("llama"), 2, {}, train)
    first = [f"{run.files.plan}@1@{2 if way == 'broken' else 0}" for (_, way), run in runs.items()]
    attempt(2, first, tmp_path / "first")
    attempt(2, [f"{runs[name, 'broken'].files.plan}@2@0" for name in cases], tmp_path / "second")
    for name in cases:
        whole, broken = runs[name, "whole"], runs[name, "broken"]
        assert broken.losses() == whole.losses(), name
        assert weights(broken) == weights(whole), name
