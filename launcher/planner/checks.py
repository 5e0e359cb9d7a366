"""What cannot work, found before anything is submitted: parts not built, layouts, number formats, engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.engines import GPTQ_GROUP_SIZES, divisible_group_sizes, engine_refusal
from launcher.errors import Fault
from launcher.memory import linear_inputs
from launcher.models import ModelFacts
from launcher.plan import Environment, Resources
from launcher.planner.boxes import Box
from launcher.planner.engines import engine_faults, engine_warnings, layout_of
from launcher.recipe import Recipe
from launcher.sites import Site

_WITHOUT_BF16 = ("v100", "p100", "t4", "rtx2080")
_WITHOUT_FP8 = ("a100", "a800", "a40", "a30", "a10", "v100", "p100", "t4")


def train_faults(recipe: Recipe, facts: ModelFacts, need: Resources, site: Site) -> Iterator[Fault]:
    """Why this training cannot run on these ranks."""
    train = recipe.train
    if train is None:
        return
    yield from engine_faults(recipe, facts, need)
    if facts.max_positions and train.sequence_length > facts.max_positions:
        message = f"{train.sequence_length} is longer than the {facts.max_positions} tokens that the model can see"
        yield Fault("train.sequence_length", message, f"use {facts.max_positions} or less")
    gpu_type = site.node.gpu_type.lower()
    if train.precision == "fp8" and not need.gpus_per_node:
        yield Fault("train.precision", "fp8 is for GPUs, this stage has none", 'use precision = "bf16" or "fp32"')
    elif train.precision == "fp8" and _one_of(gpu_type, (*_WITHOUT_FP8, *_WITHOUT_BF16, "mi250x")):
        yield Fault("train.precision", f"{site.node.gpu_type} GPUs have no fp8 units", 'use precision = "bf16"')
    if train.precision == "bf16" and need.gpus_per_node and _one_of(gpu_type, _WITHOUT_BF16):
        yield Fault("train.precision", f"{site.node.gpu_type} GPUs have no bf16", 'use precision = "fp32"')


def train_warnings(recipe: Recipe, facts: ModelFacts, need: Resources) -> Iterator[str]:
    """What will run, but not well."""
    train = recipe.train
    if train is None:
        return
    yield from engine_warnings(recipe, facts)
    if train.precision == "bf16" and not need.gpus_per_node:
        yield "train.precision: bf16 on CPUs without bf16 units is slower than fp32"
    if train.precision == "fp32" and need.gpus_per_node:
        yield "train.precision: fp32 on GPUs needs twice the memory and is several times slower than bf16"
    if train.layout.tensor > need.tasks_per_node:
        yield f"train.layout.tensor: {train.layout.tensor} ranks of one matrix span nodes, which the network slows down"
    copies = need.world_size // layout_of(recipe).model_parallel
    micro_batches = train.global_batch_size // (train.micro_batch_size * max(1, copies))
    if train.layout.pipeline > micro_batches:
        yield (
            f"train.layout.pipeline: {micro_batches} micro-batches a step leave some of {train.layout.pipeline} "
            "pipeline stages idle at every moment"
        )


def quantize_faults(recipe: Recipe, facts: ModelFacts) -> Iterator[Fault]:
    """Group sizes that quantize and save without complaint and fail when the model is used."""
    quantize = recipe.quantize
    if quantize is None or quantize.method != "gptq" or quantize.group_size in (None, -1):
        return
    sizes = linear_inputs(facts)
    possible = divisible_group_sizes(sizes)
    if quantize.group_size in possible:
        return
    if quantize.group_size not in GPTQ_GROUP_SIZES:
        message = f"{quantize.group_size} has no kernel"
    else:
        message = f"{quantize.group_size} does not divide the inputs of every layer ({', '.join(map(str, sizes))})"
    hint = "use " + " or ".join(map(str, possible)) if possible else "use -1 (one scale for a whole column)"
    yield Fault("quantize.group_size", message, hint)


def serve_faults(boxes: Sequence[Box], facts: ModelFacts, needs: dict[str, Resources]) -> Iterator[Fault]:
    """Engines that cannot serve such a model on these nodes."""
    for box in boxes:
        if box.worker != "serve":
            continue
        need = needs[box.name]
        if refusal := engine_refusal(box.options["engine"], box.options["quantization"], need.gpus_per_node):
            message, _, hint = refusal.partition("; ")
            yield Fault("serve.engine", message, hint)
        if "chat_template" in box.options["model"]:
            message = "a server takes the template of the model's folder, and nothing before it writes another folder"
            yield Fault("model.chat_template", message, "save it in the folder as chat_template.jinja instead")
        if need.gpus_per_node > 1 and facts.heads % need.gpus_per_node:
            message = f"{need.gpus_per_node} GPUs cannot divide the model's {facts.heads} attention heads"
            yield Fault("resources.serve.gpus_per_node", message, "use a divisor of it")


def serve_warnings(recipe: Recipe, site: Site, need: Resources | None) -> Iterator[str]:
    """Number formats that the GPUs only imitate."""
    fp8 = recipe.quantize is not None and recipe.quantize.method == "fp8"
    if fp8 and need is not None and need.gpus_per_node and _one_of(site.node.gpu_type.lower(), _WITHOUT_FP8):
        yield f"quantize.method: {site.node.gpu_type} GPUs have no fp8 units; engines use fp8 for the weights alone"


def unused_tables(recipe: Recipe, boxes: Sequence[Box]) -> Iterator[str]:
    """Tables under [resources] of stages that the recipe does not have."""
    used = {"default", *(box.table for box in boxes)}
    for table in sorted(recipe.resources.model_fields_set - used):
        if table == "evaluate" and "baseline" in used:
            continue  # the baseline's, where it has no table of its own
        yield f"resources.{table}: the recipe has no such stage"


def container_warnings(data: Mapping[str, Any] | None, environments: Sequence[Environment]) -> Iterator[str]:
    """Data files that containers cannot see."""
    paths = [*(data or {}).get("train", ()), *(data or {}).get("evaluation", ())]
    for environment in sorted({each.role: each for each in environments}.values(), key=lambda each: each.role):
        if environment.kind not in ("pyxis", "apptainer"):
            continue
        shown = [mount.split(":")[1] for mount in environment.mounts]
        hidden = [path for path in paths if not any(_below(path, folder) for folder in shown)]
        if hidden:
            yield (
                f"data: {hidden[0]} is in no mount of the {environment.role} container; "
                f"add its folder to environments.{environment.role}.mounts of the site"
            )


def _one_of(gpu_type: str, names: Sequence[str]) -> bool:
    """Whether a GPU type ("nvidia_a100-sxm4-80gb") is one of these; "a10" is not "a100"."""
    return any(name in gpu_type.replace("-", "_").split("_") for name in names)


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
