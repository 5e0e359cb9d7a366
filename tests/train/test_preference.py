"""Preference methods and reward models: the same training in every layout, whatever gives the reference.

All methods are trained in one process a rank and layout; see several.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import HERE, ROOT, Attempt, Run, train_python, write_run

pytestmark = pytest.mark.layout

DPO = {
    "beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.1, "length_normalization": False, "sft_weight": 0.5,
    "reference": "adapter-off",
}  # fmt: skip
KTO = {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5, "reference": "adapter-off"}
SIMPO = {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0, "sft_weight": 0.0}
RM = {"margin": 0.5, "center_weight": 0.01}
FULL: dict[str, Any] = {"tuner": "full"}
# name -> method, [train.preference], other settings
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "dpo": ("dpo", DPO, {}),
    "dpo-precomputed": ("dpo", {**DPO, "reference": "precomputed"}, {}),
    "dpo-full": ("dpo", {**DPO, "reference": "frozen-copy"}, FULL),
    "dpo-full-precomputed": ("dpo", {**DPO, "reference": "precomputed"}, FULL),
    "ipo": ("dpo", {**DPO, "loss": "ipo", "label_smoothing": 0.0}, {}),
    "simpo": ("simpo", SIMPO, {}),
    "orpo": ("orpo", {"beta": 0.1, "sft_weight": 1.0}, {}),
    "cpo": ("cpo", {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 1.0}, {}),
    "kto": ("kto", KTO, {}),
    "kto-full": ("kto", {**KTO, "reference": "frozen-copy"}, FULL),
    "rm": ("rm", RM, {}),
    "rm-full": ("rm", RM, FULL),
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "TP2+SP": {"tensor": 2, "sequence_parallel": True},
    "TP2": {"tensor": 2},
    "VPP2": {"pipeline": 2, "virtual_pipeline": 2},
    "CP2": {"context": 2},
    "DP2": {},
    "EP2": {"expert": 2},
}
MOE = ["dpo", "dpo-full", "kto", "rm", "rm-full"]


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


def finish(runs: list[Run]) -> None:
    """Train all runs, of the same number of ranks, in one process a rank."""
    ranks = runs[0].ranks
    logs = [runs[0].files.root / f"rank-{rank}.log" for rank in range(ranks)]
    attempt = Attempt([], logs)
    for run in runs:
        run.files.attempt("train", 1).mkdir(parents=True)
    for rank, log in enumerate(logs):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "SWIFTLAUNCH_ATTEMPT": "1",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": str(rank),
            "SLURM_NTASKS": str(ranks),
        }
        plans = [str(run.files.plan) for run in runs]
        with log.open("wb") as out:
            attempt.processes.append(
                subprocess.Popen(
                    [train_python(), str(HERE / "several.py"), *plans],
                    env=environment,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    codes = attempt.wait(600)
    assert codes == [0] * ranks, attempt.text()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    """The runs of one layout ("" is one process) and model, by name."""
    done: dict[tuple[str, str], dict[str, Run]] = {}

    def train(layout: str, kind: str = "llama") -> dict[str, Run]:
        if (layout, kind) not in done:
            folder = tmp_path_factory.mktemp("runs")
            ranks = 2 if layout else 1
            # without sequence parallelism the head's gradient is not summed over tensor-parallel ranks
            names = ["rm", "rm-full"] if layout == "TP2" else MOE if kind == "moe" else list(RUNS)
            runs = {name: made(folder / name, tiny_model(kind), name, ranks, LAYOUTS.get(layout, {})) for name in names}
            finish(list(runs.values()))
            done[layout, kind] = runs
        return done[layout, kind]

    return train


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_agree_with_one_process(trained: Callable[..., dict[str, Run]], layout: str) -> None:
    found = {}
    kind = "moe" if layout == "EP2" else "llama"
    for name, run in trained(layout, kind).items():
        alone = trained("", kind)[name]
        found[name] = (
            max(abs(a - b) for a, b in zip(run.losses(), alone.losses(), strict=True)),
            max(abs(a - b) / b for a, b in zip(run.norms(), alone.norms(), strict=True)),
        )
    print(found)
    assert all(loss < 1e-4 and norm < 1e-3 for loss, norm in found.values()), found


@pytest.mark.parametrize("name", RUNS)
def test_every_method_learns(trained: Callable[..., dict[str, Run]], name: str) -> None:
    run = trained("")[name]
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
def test_a_precomputed_reference_is_the_same(trained: Callable[..., dict[str, Run]], name: str) -> None:
    now, before = (trained("")[each] for each in (name, f"{name}-precomputed"))
    assert now.losses() == before.losses()
    assert now.norms() == before.norms()
