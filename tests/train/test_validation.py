"""Validation: the loss of what is not trained on, in every layout and with every engine the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, finish_together, write_run
from .equivalence import ALONE, LAYOUTS
from .sharded import finish
from .test_export import transformers_view
from .test_packed import rows_of_many_lengths

pytestmark = pytest.mark.layout

STEPS, ROWS = 4, 24
# what is not to be seen in a validation loss: noise and dropout
TRAIN: dict[str, Any] = {
    "steps": STEPS,
    "validation": {"every_steps": 3, "limit": ROWS + 5},  # rows beyond whole global batches are left out
    "neftune_alpha": 15.0,
}
DROPOUT: dict[str, Any] = {"lora": {"rank": 8, "alpha": 16, "dropout": 0.5, "target_modules": ["all-linear"]}}
DATA: dict[str, Any] = {"evaluation_size": 40}
CASES = {
    "llama": ["TP2", "TP2+SP", "PP2", "PP2 VPP2", "CP2", "DP2"],
    "moe": ["EP2"],
    "packed": ["TP2+SP", "CP2", "DP2"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[tuple[str, str], Run]:
    """By case and layout."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for layout in LAYOUTS:
        for name, layouts in CASES.items():
            if layout == ALONE or layout in layouts:
                ranks, sizes = LAYOUTS[layout]
                model = tiny_model("llama" if name == "packed" else name)
                train = {**TRAIN, "layout": sizes, "packing": name == "packed", "overlap": "on" if ranks > 1 else "off"}
                runs[name, layout] = write_run(folder / f"run-{len(runs)}", model, ranks, DATA, train)
    for ranks in (1, 2):
        finish_together([run for run in runs.values() if run.ranks == ranks])
    return runs


@pytest.mark.parametrize("name", CASES)
def test_layouts_agree(trained: dict[tuple[str, str], Run], name: str) -> None:
    alone = trained[name, ALONE]
    assert list(alone.validated()) == [3, STEPS], "at its steps and at the end"
    assert all(event["samples"] == ROWS for event in alone.events("validation"))
    for layout in CASES[name]:
        run = trained[name, layout]
        assert run.validated() == pytest.approx(alone.validated(), abs=1e-4), layout
        assert run.losses() == pytest.approx(alone.losses(), abs=1e-4), layout


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_loss_that_transformers_finds(trained: dict[tuple[str, str], Run], name: str) -> None:
    run = trained[name, ALONE]
    run.finish("export")
    told = run.validated()[STEPS]
    plan = run.files.plan.read_text()
    run.files.plan.write_text(plan.replace(f'"limit": {ROWS + 5}', f'"limit": {ROWS}'))
    found = transformers_view(run, run.files.artifact("export"))
    assert told == pytest.approx(found["validation_loss"], abs=2e-5)
    assert run.result()["metrics"]["validation_loss"] == told


def test_engines_agree_and_dropout_is_off(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    """With a learning rate of almost nothing the model stays what it was, whatever dropout does to its training."""
    still = {**TRAIN, **DROPOUT, "learning_rate": 1e-12}
    engines: dict[str, tuple[int, dict[str, Any]]] = {
        "megatron": (1, {}),
        "fsdp": (2, {"engine": "fsdp"}),
        "deepspeed": (2, {"engine": "deepspeed", "deepspeed": {"stage": 3, "offload": "none"}}),
    }
    losses = {}
    for name, (ranks, settings) in engines.items():
        full = {**TRAIN, "tuner": "full", "learning_rate": 1e-3, **settings}
        runs = [
            write_run(tmp_path / f"{name}-{number}", tiny_model("llama"), ranks, DATA, train)
            for number, train in enumerate(({**still, **settings}, full))
        ]
        finish(runs, name)
        losses[name] = [list(run.validated().values()) for run in runs]
        assert losses[name][0][0] == pytest.approx(losses[name][0][1], abs=1e-6), "dropout is off"
        assert losses[name][1][0] > losses[name][1][1], "it learns what is common to all rows"
    for name in ("fsdp", "deepspeed"):
        for mine, theirs in zip(losses[name], losses["megatron"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4), name


def test_the_best_is_kept_and_a_stop_is_not_among_the_best(
    new_run: Callable[..., Any], tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    settings = {"tuner": "full", "learning_rate": 0.05, "steps": 8, "warmup_steps": 0, "schedule": "constant"}
    checkpoint = {"every_steps": 2, "keep_last": 1, "keep_best": 1, "save_optimizer": True}
    run = new_run(data=DATA, validation={"every_steps": 1, "limit": ROWS}, checkpoint=checkpoint, **settings).finish()
    validated = run.validated()
    best = min((2, 4, 6), key=validated.__getitem__)
    kept = sorted(int(path.name[5:]) for path in run.files.checkpoints("train").glob("step-*"))
    assert kept == [best, 8], validated


def test_fewer_rows_than_a_batch_come_again(new_run: Callable[..., Any], tmp_path: Path) -> None:
    data = rows_of_many_lengths(tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "held-out.jsonl").write_text("\n".join(lines[:3]) + "\n")
    data = {**data, "evaluation": [str(tmp_path / "held-out.jsonl")]}
    run = new_run(data=data, steps=2, validation={"every_steps": 1, "limit": 512}).finish()
    assert [event["samples"] for event in run.events("validation")] == [8, 8]
    assert run.events("data")[-1]["rows"] == len(lines) - 3, "what is validated with is not trained on"
