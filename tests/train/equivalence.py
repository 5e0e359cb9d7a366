"""Every layout computes the same training: what is compared, on what, and how.

A cell is a model, a tuner, a method and a layout; it is equal if losses and gradient norms of every step are those of
one process. Losses alone would not do: Adam with clipping hides gradients of a wrong scale. test_equivalence.py looks
at some of the cells; `make equivalence` at all of them, and writes docs/equivalence.md.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from launcher.topology import Layout, ModelShape, layout_faults

from .conftest import Run, finish_together, write_run

STEPS, ROWS = 10, 20
BATCH, MICRO_BATCH, LENGTH = 4, 2, 64
LOSS, NORM = 1e-4, 1e-3  # how far a step's loss (absolute) and gradient norm (relative) may be from one process's

DENSE = ModelShape(layers=4, hidden=64, heads=4, kv_heads=2, vocabulary=104)
MODELS = {"llama": DENSE, "qwen3": DENSE, "moe": replace(DENSE, experts=4)}
TUNERS: dict[str, dict[str, Any]] = {
    "full": {"tuner": "full", "learning_rate": 1e-3},
    "lora": {"tuner": "lora", "learning_rate": 5e-3},
    "dora": {"tuner": "dora", "learning_rate": 5e-3},
}
DPO: dict[str, Any] = {
    "beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.1, "length_normalization": False, "sft_weight": 0.5,
}  # fmt: skip
# name -> train.method, [train.preference]
METHODS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "cpt": ("cpt", None),
    "sft": ("sft", None),
    "dpo": ("dpo", DPO),
    "kto": ("kto", {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5}),
    "simpo": ("simpo", {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0, "sft_weight": 0.0}),
    "orpo": ("orpo", {"beta": 0.1, "sft_weight": 1.0}),
    "cpo": ("cpo", {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 1.0}),
    "rm": ("rm", {"margin": 0.5, "center_weight": 0.01}),
}
METHODS_ALIKE: dict[str, tuple[str, dict[str, Any] | None]] = {
    "dpo precomputed": ("dpo", {**DPO, "reference": "precomputed"}),
    "dpo ipo": ("dpo", {**DPO, "loss": "ipo", "label_smoothing": 0.0}),
}


def settings_of(method: str) -> dict[str, Any]:
    """[train.preference] of a method that has one."""
    return dict((METHODS | METHODS_ALIKE)[method][1] or {})


class Way(NamedTuple):
    """A layout as [train.layout] has it, and the number of ranks."""

    ranks: int
    layout: dict[str, Any]


ALONE = "1"
TP2_SP = {"tensor": 2, "sequence_parallel": True}
LAYOUTS: dict[str, Way] = {
    ALONE: Way(1, {}),
    "TP2": Way(2, {"tensor": 2}),
    "TP2+SP": Way(2, TP2_SP),
    "PP2": Way(2, {"pipeline": 2}),
    "PP2 VPP2": Way(2, {"pipeline": 2, "virtual_pipeline": 2}),
    "CP2": Way(2, {"context": 2}),
    "DP2": Way(2, {}),
    "EP2": Way(2, {"expert": 2}),
    "TP2+SP EP2": Way(2, {**TP2_SP, "expert": 2}),
    "TP2+SP ETP2": Way(2, {**TP2_SP, "expert_tensor": 2}),
    "TP2+SP PP2": Way(4, {**TP2_SP, "pipeline": 2}),
    "DP2 EP2": Way(4, {"expert": 2}),
}


class Cell(NamedTuple):
    """One training that is compared."""

    model: str
    tuner: str
    method: str
    layout: str

    @property
    def alone(self) -> Cell:
        return self._replace(layout=ALONE)


def refusal(model: str, tuner: str, layout: str) -> str:
    """Why a plan of this layout is refused for this model and tuner; "" where it is not."""
    ranks, sizes = LAYOUTS[layout]
    faults = layout_faults(
        Layout(**sizes),
        MODELS[model],
        world_size=ranks,
        global_batch_size=BATCH,
        micro_batch_size=MICRO_BATCH,
        sequence_length=LENGTH,
    )
    if MODELS[model].experts and tuner != "full" and Layout(**sizes).expert_tensor > 1:
        return "adapters of experts are not divided among ranks"  # launcher.planner.families
    return "; ".join(fault.message for fault in faults)


def layouts_of(model: str, tuner: str) -> list[str]:
    """The layouts that this model can have with this tuner."""
    return [layout for layout in LAYOUTS if not refusal(model, tuner, layout)]


class Difference(NamedTuple):
    """The largest one over all steps."""

    loss: float
    norm: float

    @property
    def equal(self) -> bool:
        return self.loss < LOSS and self.norm < NORM

    def __str__(self) -> str:
        return f"{self.loss:.0e} / {self.norm:.0e}"


def difference(run: Run, alone: Run) -> Difference:
    """Of losses (absolute) and of gradient norms (relative). Raises ValueError where steps are missing."""
    return Difference(
        max(abs(a - b) for a, b in zip(run.losses(), alone.losses(), strict=True)),
        max(abs(a - b) / b for a, b in zip(run.norms(), alone.norms(), strict=True)),
    )


def train(cells: Iterable[Cell], folder: Path, model_of: Callable[[str], Path]) -> dict[Cell, Run]:
    """Train these cells, all of the same number of ranks, in one process a rank."""
    folder.mkdir(parents=True, exist_ok=True)
    # those of one layout share its process groups
    ordered = sorted(cells, key=lambda cell: list(LAYOUTS).index(cell.layout))
    runs = {cell: written(cell, folder / f"run-{number}", model_of(cell.model)) for number, cell in enumerate(ordered)}
    finish_together(list(runs.values()), seconds=300 + 20 * len(runs))
    return runs


def written(cell: Cell, folder: Path, model: Path, **more: Any) -> Run:
    """The run of one cell, not started; `more` are settings of [train]."""
    method, preference = (METHODS | METHODS_ALIKE)[cell.method]
    tuner = TUNERS[cell.tuner]
    if preference is not None and method in ("dpo", "kto"):
        preference = {"reference": "frozen-copy" if cell.tuner == "full" else "adapter-off", **preference}
    settings = {
        "method": method, "preference": preference, "layout": LAYOUTS[cell.layout].layout, "steps": STEPS,
        "global_batch_size": BATCH, "micro_batch_size": MICRO_BATCH, "sequence_length": LENGTH, **tuner, **more,
    }  # fmt: skip
    return write_run(folder, model, LAYOUTS[cell.layout].ranks, rows_of(method, folder.parent), settings)


def rows_of(method: str, folder: Path) -> dict[str, Any]:
    """Data for a method: a character is a token, so that rows have 24 to 70, of which the longest are cut."""
    kind = {"cpt": "text", "sft": "prompt_completion", "kto": "kto"}.get(method, "preference")
    path = folder / f"{kind}.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps(row) + "\n" for row in _rows(kind)))
    return {"source": "files", "train": [str(path)], "evaluation": [], "format": kind}


def _rows(kind: str) -> Iterator[dict[str, Any]]:
    letters = string.ascii_lowercase + string.digits
    for number in range(ROWS):
        prompt = "".join(letters[(number + at) % len(letters)] for at in range(2 + number * 5 % 9))
        right = "".join(letters[(number * 7 + at) % len(letters)] for at in range(2 + number * 17 % 41))
        wrong = "".join(letters[(number * 5 + at * at) % len(letters)] for at in range(3 + number * 13 % 37))
        if kind == "text":
            yield {"text": prompt + right}
        elif kind == "prompt_completion":
            yield {"prompt": prompt, "completion": right}
        elif kind == "kto":
            wanted = number % 3 == 0
            yield {"prompt": prompt, "completion": right if wanted else wrong, "label": wanted}
        else:
            yield {"prompt": prompt, "chosen": right, "rejected": wrong}
