"""Preference methods and reward models learn what they are for, whatever gives the reference.

All are trained in one process; see several.py. That layouts make no difference is test_equivalence.py's to show.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, finish_together, write_run
from .equivalence import settings_of

pytestmark = pytest.mark.layout

DPO = {**settings_of("dpo"), "reference": "adapter-off"}
KTO = {**settings_of("kto"), "reference": "adapter-off"}
SIMPO, RM = settings_of("simpo"), settings_of("rm")
FULL: dict[str, Any] = {"tuner": "full"}
# name -> method, [train.preference], other settings
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dpo": ("dpo", DPO, {}),
    "dpo-precomputed": ("dpo", {**DPO, "reference": "precomputed"}, {}),
    "dpo-full": ("dpo", {**DPO, "reference": "frozen-copy"}, FULL),
    "dpo-full-precomputed": ("dpo", {**DPO, "reference": "precomputed"}, FULL),
    "ipo": ("dpo", {**DPO, "loss": "ipo", "label_smoothing": 0.0}, {}),
    "simpo": ("simpo", SIMPO, {}),
    "orpo": ("orpo", settings_of("orpo"), {}),
    "cpo": ("cpo", settings_of("cpo"), {}),
    "kto": ("kto", KTO, {}),
    "kto-full": ("kto", {**KTO, "reference": "frozen-copy"}, FULL),
    "rm": ("rm", RM, {}),
    "rm-full": ("rm", RM, FULL),
}


def sums(folder: Path, kind: str, count: int) -> dict[str, Any]:
    """Files of pairs or verdicts about sums; answers differ in length and some pairs are longer than others."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        one, two = 3 + 7 * number % 50, 5 + 11 * number % 60
        prompt, right, wrong = f"{one} + {two} = ?", str(one + two), f"I think {one * two}"
        if kind == "preference":
            rows.append({"prompt": prompt, "chosen": right, "rejected": wrong})
        else:
            rows.append({"prompt": prompt, "completion": wrong if number % 3 else right, "label": number % 3 == 0})
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "files", "train": [str(path)], "evaluation": [], "format": kind}


def made(
    folder: Path, model: Path, name: str, ranks: int, layout: dict[str, Any], *, rows: int = 20, **train: Any
) -> Run:
    method, preference, more = RUNS[name]
    data = sums(folder.parent, "kto" if method == "kto" else "preference", rows)
    settings = {
        "method": method, "preference": preference, "layout": layout, "steps": 4, "learning_rate": 1e-3,
        "sequence_length": 64, **more, **train,
    }  # fmt: skip
    return write_run(folder, model, ranks, data, settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[str, Run]:
    """All runs by name."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {name: made(folder / name, tiny_model("llama"), name, 1, {}) for name in RUNS}
    finish_together(list(runs.values()))
    return runs


@pytest.mark.parametrize("name", RUNS)
def test_every_method_learns(trained: dict[str, Run], name: str) -> None:
    run = trained[name]
    first, last = (run.steps()[step] for step in (1, 4))
    assert last["loss"] < first["loss"] - 0.01
    if RUNS[name][1].get("sft_weight") == 1.0:  # the likelihood of the chosen answer outweighs the difference
        assert last["logps/chosen"] > first["logps/chosen"] + 0.05
    else:
        margins = [step["rewards/chosen"] - step["rewards/rejected"] for step in (first, last)]
        assert margins[1] > margins[0] + 0.01
    if RUNS[name][0] in ("dpo", "kto"):
        assert first["rewards/chosen"] == pytest.approx(0, abs=1e-5), "training starts at the reference"


@pytest.mark.parametrize("name", ["dpo", "dpo-full"])
def test_a_precomputed_reference_is_the_same(trained: dict[str, Run], name: str) -> None:
    now, before = (trained[each] for each in (name, f"{name}-precomputed"))
    assert now.losses() == before.losses()
    assert now.norms() == before.norms()
