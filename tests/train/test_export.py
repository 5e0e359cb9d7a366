"""Exported weights are the trained ones: transformers finds in them the loss that the next training step reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, finish_together, told_by, write_run
from .equivalence import LAYOUTS

pytestmark = pytest.mark.layout

STEPS = 3


# what is trained whole here has a learning rate of its own
FULL: dict[str, Any] = {"tuner": "full", "learning_rate": 1e-3}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama, full": ("llama", "TP2+SP", FULL),
    "qwen3, lora": ("qwen3", "PP2", {"tuner": "lora"}),
    "llama, rslora": ("llama", "PP2 VPP2", {"tuner": "rslora"}),
    "llama, dora": ("llama", "TP2+SP", {"tuner": "dora"}),
    "llama, pissa": ("llama", "TP2+SP", {"tuner": "pissa"}),
    "moe, full": ("moe", "EP2", FULL),
    "moe, lora": ("moe", "EP2", {"tuner": "lora"}),
    "moe, pissa": ("moe", "EP2", {"tuner": "pissa"}),
    "moe, dora": ("moe", "TP2+SP EP2", {"tuner": "dora"}),
}
WITHOUT_ADAPTER = ("llama, full", "moe, full", "moe, dora")  # PEFT has no DoRA of experts


def test_what_is_exported_is_what_was_trained(tmp_path: Path, tiny_model: Callable[[str], Path]) -> None:
    """transformers finds the loss of the next step, and merged weights give the logits of the adapter through PEFT."""
    ordered = sorted(CASES, key=lambda name: CASES[name][1])  # runs of one layout share its groups

    def run(name: str, steps: int) -> Run:
        kind, layout, settings = CASES[name]
        settings = {"schedule": "constant", "steps": steps, "layout": LAYOUTS[layout].layout, **settings}
        return write_run(tmp_path / f"{name}-{steps}", tiny_model(kind), 2, {}, settings)

    runs = {name: (run(name, STEPS), run(name, STEPS + 1)) for name in ordered}
    finish_together([each for pair in runs.values() for each in pair])
    told = told_by("export_checks.py", *(run.files.plan for run, _ in runs.values()))
    found = dict(zip(runs, told, strict=True))
    print(found)
    for name, (run, longer) in runs.items():
        assert longer.losses()[:STEPS] == run.losses(), name
        assert abs(longer.losses()[STEPS] - longer.losses()[0]) > 0.1, f"{name} learnt too little to prove anything"
        assert found[name]["loss"] == pytest.approx(longer.losses()[STEPS], abs=2e-5), name
        assert ("merged_difference" in found[name]) == (name not in WITHOUT_ADAPTER)
        assert found[name].get("merged_difference", 0.0) < 1e-4, name


def test_an_exported_model_says_where_it_is_from(new_run: Callable[..., Any]) -> None:
    settings = {"schedule": "constant", "method": "cpt", **FULL}
    run = new_run("llama", steps=STEPS, **settings).finish().finish("export")
    longer = new_run("llama", steps=STEPS + 1, **settings).finish()
    exported = run.files.artifact("export")
    assert transformers_view(run, exported)["loss"] == pytest.approx(longer.losses()[STEPS], abs=2e-5)
    card = (exported / "README.md").read_text()
    metrics = run.result("export")["metrics"]
    assert metrics["weights_sha256"] in card
    assert f"| Steps | {STEPS} |" in card
    assert "test-run" in card
    assert (exported / "tokenizer.json").is_file()
    assert metrics["parameters"] > 100_000
    assert not list(exported.parent.glob(".*")), "nothing half written is left"


def transformers_view(run: Any, exported: Path, step: int = STEPS) -> dict[str, float]:
    """The loss of the step after `step` in what was exported, and how far the adapter's own logits are from it."""
    return dict(told_by("hf_loss.py", run.files.plan, exported, step))
