"""Which stages a recipe asks for, what each depends on and what its worker is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from launcher.engines import default_engine, engine_refusal, quantize_role, serve_role
from launcher.planner.engines import ROLES
from launcher.recipe import Recipe


@dataclass(frozen=True)
class Box:
    """A stage before resources and environment are decided. `table` names its table under [resources]."""

    name: str
    worker: str
    table: str
    role: str
    options: dict[str, Any]
    depends_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Boxes:
    stages: tuple[Box, ...]
    warnings: tuple[str, ...]


def boxes(
    recipe: Recipe,
    resolved: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    gpus: Mapping[str, int],
    one_at_a_time: bool,
    peak_tflops: float | None = None,
) -> Boxes:
    """The stages in the order in which they are submitted.

    `model` is the base model as options hold it, {name, path}; `gpus` per node by resources table,
    `peak_tflops` the rate of a training rank's GPU, where it is known. With `one_at_a_time` (all nodes are one machine)
    each stage waits for the one before it, otherwise only for those whose results it needs.
    """
    found: list[Box] = []
    warnings: list[str] = []
    data = resolved.get("data")
    newest = dict(model)  # what the next stage starts from
    needs: tuple[str, ...] = ()

    if recipe.train is not None:
        if recipe.evaluate is not None and recipe.evaluate.baseline:
            options = {"model": newest, "data": data, "evaluate": resolved["evaluate"]}
            found.append(Box("baseline", "evaluate", "baseline", "transformers", options))
        train = resolved["train"]
        role = ROLES[recipe.train.engine]
        options = {
            "model": newest,
            "data": data,
            "train": train,
            "tracking": resolved["tracking"],
            "peak_tflops": peak_tflops,
        }
        found.append(Box("train", "train", "train", role, options))
        options = {"model": newest, "data": data, "train": train, "train_stage": "train"}
        found.append(Box("export", "export", "export", role, options, ("train",)))
        newest, needs = {"name": model["name"], "artifact_of": "export"}, ("export",)

    if recipe.evaluate is not None:
        options = {"model": newest, "data": data, "evaluate": resolved["evaluate"]}
        found.append(Box("evaluate", "evaluate", "evaluate", "transformers", options, needs))

    quantization = ""
    if recipe.quantize is not None:
        quantization = recipe.quantize.method
        options = {"model": newest, "data": data, "quantize": resolved["quantize"]}
        found.append(Box("quantize", "quantize", "quantize", quantize_role(quantization), options, needs))
        newest, needs = {"name": model["name"], "artifact_of": "quantize"}, ("quantize",)
        if recipe.evaluate is not None and recipe.quantize.evaluate:
            if refusal := engine_refusal("transformers", quantization, gpus["quantize"]):
                warnings.append(f"evaluate-quantized is left out: {refusal.partition(';')[0]}")
            else:
                options = {"model": newest, "data": data, "evaluate": resolved["evaluate"]}
                role = serve_role("transformers", quantization)
                found.append(Box("evaluate-quantized", "evaluate", "quantize", role, options, needs))

    if recipe.serve is not None:
        engine: str = recipe.serve.engine
        if engine == "auto":
            engine = default_engine(gpus["serve"], quantization)
        options = {"model": newest, "serve": resolved["serve"], "engine": engine, "quantization": quantization}
        found.append(Box("serve", "serve", "serve", serve_role(engine, quantization), options, needs))

    stages = tuple(found)
    if one_at_a_time:
        stages = (*stages[:1], *(_after(box, before.name) for before, box in pairwise(stages)))
    return Boxes(stages, tuple(warnings))


def _after(box: Box, name: str) -> Box:
    return box if name in box.depends_on else replace(box, depends_on=(*box.depends_on, name))
