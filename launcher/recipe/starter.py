"""A commented recipe to start from."""

from __future__ import annotations

from typing import Any

import tomlkit
from tomlkit.items import Table

from launcher.errors import UserError
from launcher.recipe.fields import Section, shown
from launcher.recipe.preference import DEFAULTS, FORMATS, Preference
from launcher.recipe.sections import Data, Evaluate, Model, Quantize, Recipe, ResourceRequest, Serve
from launcher.recipe.training import Checkpoint, Lora, Train, TrainLayout

METHODS = ("sft", "cpt", "dpo", "kto", "simpo", "orpo", "cpo", "rm")

_COMMON_TRAIN = {
    "engine": "megatron",
    "precision": "bf16",
    "epochs": 1,
    "global_batch_size": 64,
    "micro_batch_size": 1,
    "schedule": "cosine",
    "warmup_steps": 10,
}


def starter(method: str = "sft") -> str:
    """A recipe of that method, each key explained; it loads as it is. Raises UserError for other methods."""
    if method not in METHODS:
        raise UserError(f"no starter for method {shown(method)}", hint=f"known: {', '.join(METHODS)}")
    document = tomlkit.document()
    document.add(tomlkit.comment("Check it with `swiftlaunch plan FILE`, run it with `swiftlaunch submit FILE`."))
    document.add("name", tomlkit.item(f"my-{method}").comment(_about(Recipe, "name")))
    lora = method != "cpt"
    compares = method in DEFAULTS
    train: dict[str, Any] = {"method": method, "tuner": "lora" if lora else "full", **_COMMON_TRAIN}
    train["sequence_length"] = 2048 if lora else 4096
    train["learning_rate"] = 2e-5 if compares else 1e-4 if lora else 1e-5
    table = _table(Train, train)
    if compares:
        settings = {key: value for key, value in DEFAULTS[method].items() if value is not None}
        table.add("preference", _table(Preference, settings))
    if lora:
        table.add("lora", _table(Lora, {"rank": 16, "alpha": 32}))
    table.add("layout", _table(TrainLayout, {"tensor": 1, "pipeline": 1}))
    table.add("checkpoint", _table(Checkpoint, {"every_steps": 100, "keep_last": 2}))
    files = {"source": "files", "train": ["data/train.jsonl"], "evaluation": ["data/evaluation.jsonl"]}
    sections: dict[str, Table] = {
        "model": _table(Model, {"name": "qwen3-0.6b"}),
        "data": _table(Data, {**files, "format": FORMATS.get(method, "messages" if lora else "text")}),
        "train": table,
    }
    if method != "rm":  # which writes no answers
        sections["evaluate"] = _table(Evaluate, {"baseline": True, "limit": 200})
    if lora and method != "rm":
        sections["quantize"] = _table(Quantize, {"method": "fp8"})
        sections["serve"] = _table(Serve, {"engine": "auto"})
    resources = tomlkit.table(is_super_table=True)
    resources.add("train", _table(ResourceRequest, {"nodes": 1, "tasks_per_node": 1, "time_limit": "4h"}))
    sections["resources"] = resources
    for name, section in sections.items():
        document.add(name, section)
    return tomlkit.dumps(document)


def _table(section: type[Section], values: dict[str, Any]) -> Table:
    table = tomlkit.table()
    for key, value in values.items():
        table.add(key, tomlkit.item(value).comment(_about(section, key)))
    return table


def _about(section: type[Section], key: str) -> str:
    """What the reference says of a key, for a comment behind it."""
    return (section.model_fields[key].description or "").removesuffix(".")
