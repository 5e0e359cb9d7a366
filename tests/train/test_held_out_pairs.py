"""Validation of preference methods: the same in every layout, with every engine and reference, and in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, finish_together, told_by, write_run
from .equivalence import ALONE, LAYOUTS, settings_of
from .sharded import finish

pytestmark = pytest.mark.layout

STEPS, ROWS = 4, 24
DPO: dict[str, Any] = {**settings_of("dpo"), "label_smoothing": 0.0, "sft_weight": 0.0, "beta": 0.5}
KTO = settings_of("kto")
RM = {"margin": 0.0, "center_weight": 0.0}
PRECOMPUTED, OFF, COPY = ({"reference": kind} for kind in ("precomputed", "adapter-off", "frozen-copy"))
FULL: dict[str, Any] = {"tuner": "full", "learning_rate": 3e-4}
# name -> method, [train.preference], other settings, layouts
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], list[str]]] = {
    "dpo": ("dpo", {**DPO, **OFF}, {}, ["TP2+SP", "PP2 VPP2", "CP2", "DP2"]),
    "dpo-precomputed": ("dpo", {**DPO, **PRECOMPUTED}, {}, ["PP2"]),
    "dpo-full": ("dpo", {**DPO, **COPY}, FULL, ["TP2"]),
    "kto": ("kto", {**KTO, **OFF}, {}, ["PP2", "CP2", "DP2"]),
    "kto-precomputed": ("kto", {**KTO, **PRECOMPUTED}, {}, ["DP2"]),
    "kto-full": ("kto", {**KTO, **COPY}, FULL, []),
    "simpo": ("simpo", settings_of("simpo"), {}, ["CP2"]),
    "orpo": ("orpo", settings_of("orpo"), {}, ["PP2"]),
    "rm": ("rm", RM, {}, ["TP2", "PP2", "CP2"]),
    "rm-full": ("rm", RM, FULL, []),
}


def made(folder: Path, model: Path, name: str, ranks: int, layout: dict[str, Any], **more: Any) -> Run:
    method, preference, settings, _ = CASES[name]
    train = {
        "method": method, "preference": preference, "layout": layout, "steps": STEPS, "sequence_length": 64,
        "validation": {"every_steps": 3, "limit": ROWS + 5}, **settings, **more,
    }  # fmt: skip
    return write_run(folder, model, ranks, split(folder.parent, "kto" if method == "kto" else "preference"), train)


def split(folder: Path, kind: str) -> dict[str, Any]:
    """Rows about sums, those at the end held out. The answers differ by little, so that none is sure."""
    rows: list[dict[str, Any]] = []
    for number in range(40 + ROWS + 5):
        one, two = 3 + 7 * number % 50, 5 + 11 * number % 60
        prompt, right, wrong = f"{one} + {two} = ?", str(one + two), str(one + two + 1 + number % 3)
        if kind == "kto":
            rows.append({"prompt": prompt, "completion": wrong if number % 3 else right, "label": number % 3 == 0})
        else:
            rows.append({"prompt": prompt, "chosen": right, "rejected": wrong})
    files = folder / f"{kind}.jsonl", folder / f"held-out-{kind}.jsonl"
    for path, part in zip(files, (rows[:40], rows[40:]), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return {"source": "files", "train": [str(files[0])], "evaluation": [str(files[1])], "format": kind}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[tuple[str, str], Run]:
    """By case and layout."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for name, (*_, layouts) in CASES.items():
        for layout in (ALONE, *layouts):
            ranks, sizes = LAYOUTS[layout]
            runs[name, layout] = made(folder / f"run-{len(runs)}", tiny_model("llama"), name, ranks, sizes)
    for ranks in (1, 2):
        finish_together([run for run in runs.values() if run.ranks == ranks])
    return runs


@pytest.mark.parametrize("name", CASES)
def test_layouts_agree(trained: dict[tuple[str, str], Run], name: str) -> None:
    alone = looks(trained[name, ALONE])
    assert [look["step"] for look in alone] == [3, STEPS]
    method, *_, layouts = CASES[name]
    for look in alone:
        assert look["samples"] == look["answers" if method == "kto" else "pairs"] == ROWS
        assert {"rewards/chosen", "rewards/rejected"} <= look.keys()
        assert ("rewards/accuracies" in look) == (method != "kto")
    assert alone[0]["loss"] != pytest.approx(alone[1]["loss"], abs=1e-4), "a step changes it"
    for layout in layouts:
        for mine, other in zip(looks(trained[name, layout]), alone, strict=True):
            assert figures(mine) == pytest.approx(figures(other), abs=1e-4), layout


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_the_reference_is_the_same_from_wherever_it_comes(trained: dict[tuple[str, str], Run], method: str) -> None:
    off, before = looks(trained[method, ALONE]), looks(trained[f"{method}-precomputed", ALONE])
    for mine, other in zip(before, off, strict=True):
        assert figures(mine) == pytest.approx(figures(other), abs=1e-5)


@pytest.mark.parametrize("name", ["dpo", "dpo-full", "rm", "rm-full"])
def test_it_is_what_transformers_finds(trained: dict[tuple[str, str], Run], name: str) -> None:
    run = trained[name, ALONE]
    run.finish("export")
    plan = run.files.root / "plan of whole batches.json"
    plan.write_text(run.files.plan.read_text().replace(f'"limit": {ROWS + 5}', f'"limit": {ROWS}'))
    found = told_by("hf_held_out.py", plan, run.files.artifact("export"))
    told = run.result()["metrics"]
    assert told["validation_loss"] == looks(run)[-1]["loss"] == pytest.approx(found["loss"], abs=2e-5)
    assert told["validation_accuracy"] == pytest.approx(found["accuracy"], abs=1e-6)
    assert 0 < found["accuracy"] < 1, "what is sure proves little"


def test_engines_agree(trained: dict[tuple[str, str], Run], tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    engines: dict[str, dict[str, Any]] = {
        "fsdp": {"engine": "fsdp"},
        "deepspeed": {"engine": "deepspeed", "deepspeed": {"stage": 3, "offload": "none"}},
    }
    model = tiny_model("llama")
    for engine, settings in engines.items():
        names = ("dpo-full", "kto-full", "rm-full")
        runs = {name: made(tmp_path / f"{engine}-{name}", model, name, 2, {}, **settings) for name in names}
        finish(list(runs.values()), engine)
        for name, run in runs.items():
            for mine, other in zip(looks(run), looks(trained[name, ALONE]), strict=True):
                assert figures(mine) == pytest.approx(figures(other), abs=1e-4), (engine, name)


def looks(run: Run) -> list[dict[str, Any]]:
    return run.events("validation")


def figures(look: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in look.items() if name == "loss" or "/" in name}
