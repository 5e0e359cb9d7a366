"""FSDP2 and ZeRO train as Megatron-core does: the same losses and gradient norms for the same recipe.

Every method is compared with the Megatron engine on one rank, in fp32 and with all weights trained; adapters, which
start otherwise there, with one rank of the engine itself. Runs of an engine share a process a rank.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, write_run
from .sharded import finish
from .test_packed import rows_of_many_lengths
from .test_preference import KTO, RM, SIMPO, sums

pytestmark = pytest.mark.layout

FROZEN: dict[str, Any] = {"reference": "frozen-copy"}
DPO = {"beta": 0.1, "loss": "sigmoid", "label_smoothing": 0.1, "length_normalization": False, "sft_weight": 0.5}
PACKED: dict[str, Any] = {"packing": True, "sequence_length": 128, "data": "lengths", "global_batch_size": 4}
# name -> settings of [train]; `data` names what it learns from, `model` the tiny model
METHODS: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft-packed": PACKED,
    "cpt": {
        "method": "cpt",
        "weight_decay": 0.1,
        "schedule": "wsd",
        "decay_steps": 1,
        "optimizer": "adam",
        "gradient_clip": 0.5,
        "activation_recompute": "full",
    },
    "sgd": {"optimizer": "sgd", "learning_rate": 1e-2, "gradient_clip": 0.0, "schedule": "linear"},
    "lion": {"optimizer": "lion", "learning_rate": 3e-4, "beta2": 0.99, "weight_decay": 0.1},
    "noise": {"neftune_alpha": 15.0},
    "noise-packed": {**PACKED, "neftune_alpha": 15.0},
    "sft-qwen3": {"model": "qwen3"},
    "sft-moe": {"model": "moe"},
    "dpo": {"method": "dpo", "preference": {**DPO, **FROZEN}},
    "dpo-precomputed": {"method": "dpo", "preference": {**DPO, "reference": "precomputed"}},
    "kto": {"method": "kto", "preference": {**KTO, **FROZEN}},
    "simpo": {"method": "simpo", "preference": SIMPO},
    "orpo": {"method": "orpo", "preference": {"beta": 0.1, "sft_weight": 1.0}},
    "cpo": {"method": "cpo", "preference": {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 1.0}},
    "rm": {"method": "rm", "preference": RM},
}
# what has no like in the Megatron engine, or starts otherwise there
OWN: dict[str, dict[str, Any]] = {
    **{tuner: {"tuner": tuner, "learning_rate": 5e-3} for tuner in ("lora", "rslora", "dora", "pissa", "qlora")},
    "adamw_8bit": {"optimizer": "adamw_8bit", "learning_rate": 3e-3},
    "galore_adamw": {"optimizer": "galore_adamw", "learning_rate": 3e-2},
    "apollo_adamw": {"optimizer": "apollo_adamw", "learning_rate": 3e-2},
    "offload": {"checkpoint": {"every_steps": 2, "keep_last": 2}},
    "bf16": {"precision": "bf16"},
    "rm-lora": {"method": "rm", "preference": RM, "tuner": "lora", "learning_rate": 5e-3},
    "rm-qlora": {"method": "rm", "preference": RM, "tuner": "qlora", "learning_rate": 5e-3},
    "dpo-lora": {
        "method": "dpo", "preference": {**DPO, "reference": "adapter-off"}, "tuner": "lora", "learning_rate": 5e-3
    },
}  # fmt: skip
FSDP: dict[str, Any] = {"engine": "fsdp"}
ZERO2: dict[str, Any] = {"engine": "deepspeed", "deepspeed": {"stage": 2, "offload": "none"}}
ZERO3: dict[str, Any] = {"engine": "deepspeed", "deepspeed": {"stage": 3, "offload": "none"}}


def made(folder: Path, models: Callable[[str], Path], ranks: int, settings: dict[str, Any]) -> Run:
    train = {"tuner": "full", "learning_rate": 1e-3, "steps": 3, **settings}
    wanted, model = train.pop("data", ""), models(train.pop("model", "llama"))
    data: dict[str, Any] = {}
    if wanted == "lengths":
        data = rows_of_many_lengths(folder.parent / "lengths.jsonl")
    elif train.get("preference"):
        train.setdefault("sequence_length", 64)
        data = sums(folder.parent, "kto" if train["method"] == "kto" else "preference", 20)
    return write_run(folder, model, ranks, data, train)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[str, Run]:
    """All methods on one rank of the Megatron engine."""
    folder = tmp_path_factory.mktemp("reference")
    runs = {name: made(folder / name, tiny_model, 1, settings) for name, settings in METHODS.items()}
    finish(list(runs.values()), "megatron")
    return runs


@pytest.mark.parametrize(
    ("ranks", "engine", "names"),
    [
        pytest.param(1, FSDP, ["sft", "sft-packed", "dpo"], id="fsdp-alone"),
        pytest.param(2, FSDP, list(METHODS), id="fsdp"),
        pytest.param(2, ZERO2, ["sft", "sft-packed", "cpt", "lion", "sft-moe", "dpo", "kto", "rm"], id="zero2"),
        pytest.param(2, ZERO3, ["sft", "noise", "dpo", "dpo-precomputed", "kto", "rm"], id="zero3"),
    ],
)
def test_engines_train_as_megatron_does(
    reference: dict[str, Run],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    ranks: int,
    engine: dict[str, Any],
    names: list[str],
) -> None:
    runs = {name: made(tmp_path / name, tiny_model, ranks, {**METHODS[name], **engine}) for name in names}
    finish(list(runs.values()), engine["engine"])
    found = {name: _difference(run, reference[name]) for name, run in runs.items()}
    print(found)
    assert all(loss < 1e-4 and norm < 1e-3 for loss, norm in found.values()), found
    for name, run in runs.items():
        ours, theirs = run.result()["metrics"], reference[name].result()["metrics"]
        assert ours["tokens"] == theirs["tokens"], name
        mine, other = (
            {field for field in each.steps()[1] if not field.endswith("_seconds")} for each in (run, reference[name])
        )
        assert mine == other, "the same fields in the events"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> dict[str, Run]:
    """What the engines have of their own, on one rank."""
    folder = tmp_path_factory.mktemp("alone")
    runs = {name: made(folder / name, tiny_model, 1, {**settings, **FSDP}) for name, settings in OWN.items()}
    finish(list(runs.values()), "fsdp")
    for name, run in runs.items():
        assert run.losses()[-1] < run.losses()[0] - 0.05, f"{name} must learn, or equal losses prove nothing"
    return runs


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        pytest.param(FSDP, ["lora", "rslora", "dora", "pissa", "qlora", "bf16", "rm-qlora", "dpo-lora"], id="fsdp"),
        pytest.param(ZERO2, ["lora", "pissa", "qlora", "adamw_8bit", "bf16", "rm-lora"], id="zero2"),
        pytest.param(ZERO3, ["lora", "dora", "offload", "dpo-lora"], id="zero3"),
    ],
)
def test_two_ranks_train_as_one_does(
    alone: dict[str, Run],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    engine: dict[str, Any],
    names: list[str],
) -> None:
    settings = {name: {**OWN[name], **engine} for name in names}
    if "offload" in settings:
        settings["offload"]["deepspeed"] = {"stage": 3, "offload": "cpu"}
    runs = {name: made(tmp_path / name, tiny_model, 2, each) for name, each in settings.items()}
    finish(list(runs.values()), engine["engine"])
    found = {name: _difference(run, alone[name]) for name, run in runs.items()}
    print(found)
    rough = {"bf16": (0.05, 0.1), "adamw_8bit": (0.02, 0.05)}  # rounded otherwise in other pieces
    for name, (loss, norm) in found.items():
        most = rough.get(name, (1e-4, 1e-3))
        assert loss < most[0], (name, found)
        assert norm < most[1], (name, found)


def _difference(run: Run, other: Run) -> tuple[float, float]:
    """Largest differences of losses, and of gradient norms relative to the other's."""
    assert len(run.losses()) == len(other.losses())
    return (
        max(abs(a - b) for a, b in zip(run.losses(), other.losses(), strict=True)),
        max(abs(a - b) / b for a, b in zip(run.norms(), other.norms(), strict=True)),
    )
