"""What each training engine has of the recipe's choices, and what does not work in it on these ranks."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Fault
from launcher.models import ModelFacts
from launcher.plan import Resources
from launcher.planner.families import family_faults, family_warnings
from launcher.recipe import Recipe
from launcher.recipe.training import SHARDED, Train
from launcher.topology import Layout, layout_faults

_METHODS = ("cpt", "sft", "dpo", "kto", "simpo", "orpo", "cpo", "rm")
_TUNERS = ("full", "lora", "rslora", "dora", "pissa")
_BUILT = {
    "megatron": {
        "method": _METHODS,
        "tuner": _TUNERS,
        "optimizer": ("adamw", "adam", "sgd", "lion", "muon", "adamw_8bit"),
    },
    "deepspeed": {
        "method": _METHODS,
        "tuner": (*_TUNERS, "qlora"),
        "optimizer": ("adamw", "adam", "sgd", "lion", "adamw_8bit"),
    },
    "fsdp": {
        "method": _METHODS,
        "tuner": (*_TUNERS, "qlora"),
        "optimizer": ("adamw", "adam", "sgd", "lion", "adamw_8bit", "galore_adamw", "apollo_adamw"),
    },
}
ROLES = {"megatron": "train", "deepspeed": "sharded", "fsdp": "sharded"}  # the environment of an engine
_DIVISIBLE = ("adamw", "adam", "sgd", "lion")  # optimizers that can update weights which FSDP has divided


def layout_of(recipe: Recipe) -> Layout:
    """The recipe's layout in the planner's terms."""
    return Layout(**recipe.train.layout.model_dump()) if recipe.train else Layout()


def layout_text(recipe: Recipe, world_size: int) -> str:
    """How training is divided among the ranks, in words; the engine's own where it is not Megatron-core."""
    train = recipe.train
    words = layout_of(recipe).text(world_size)
    if train is not None and train.deepspeed is not None:
        return f"ZeRO-{train.deepspeed.stage} {words}"
    return f"FSDP {words}" if train is not None and train.fsdp is not None else words


def engine_faults(recipe: Recipe, facts: ModelFacts, need: Resources) -> Iterator[Fault]:
    """Why the recipe's engine cannot train so on these ranks."""
    train = recipe.train
    assert train is not None
    for key, built in _BUILT[train.engine].items():
        if (value := getattr(train, key)) not in built:
            others = [engine for engine, has in _BUILT.items() if value in has[key]]
            hint = "choose " + ", ".join(built) + (f"; or engine = {' or '.join(others)}" if others else "")
            yield Fault(f"train.{key}", f'"{value}" is not built for {train.engine}', hint)
    if train.engine in SHARDED:
        yield from _sharded_faults(train, need)
        return
    yield from family_faults(train, facts)
    yield from layout_faults(
        layout_of(recipe),
        facts.shape,
        world_size=need.world_size,
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size,
        sequence_length=train.sequence_length,
    )
    if train.layout.expert_tensor > 1 and train.tuner != "full":
        message = "experts that are divided among ranks take no adapters"
        yield Fault("train.layout.expert_tensor", message, 'use expert_tensor = 1, or tuner = "full"')
    if train.layout.expert_tensor > 1 and train.optimizer == "muon":
        message = "muon needs whole experts"
        yield Fault("train.layout.expert_tensor", message, "use expert_tensor = 1, or another optimizer")
    if train.precision == "fp8":
        layout = train.layout
        tokens = train.micro_batch_size * train.sequence_length
        parts = layout.context * (layout.tensor if layout.sequence_parallel else 1)
        if tokens % (16 * parts):
            message = f"a rank's {tokens / parts:g} tokens of a pass are not a multiple of 16, which fp8 needs"
            yield Fault("train.sequence_length", message, f"use a multiple of {16 * parts}")
    if train.precision == "fp32" and need.gpus_per_node and train.layout.context > 1:
        message = "context parallelism on GPUs needs fused attention, which has no fp32"
        yield Fault("train.layout.context", message, 'use precision = "bf16", or context = 1')
    if train.precision == "fp32" and need.gpus_per_node and train.packing:
        message = "packing on GPUs needs fused attention, which has no fp32"
        yield Fault("train.packing", message, 'use precision = "bf16", or packing = false')


def _sharded_faults(train: Train, need: Resources) -> Iterator[Fault]:
    together = train.micro_batch_size * need.world_size
    if train.global_batch_size % together:
        message = (
            f"{train.global_batch_size} is not divisible by micro_batch_size * ranks = "
            f"{train.micro_batch_size} * {need.world_size}"
        )
        yield Fault("train.global_batch_size", message, f"use a multiple of {together}")
    if train.fsdp is not None and train.optimizer not in _DIVISIBLE:
        hint = "use adamw" + (
            ', or engine = "deepspeed"' if train.optimizer in _BUILT["deepspeed"]["optimizer"] else ", or one rank"
        )
        if need.world_size > 1:
            message = f"{train.optimizer} needs whole weights, and FSDP divides them among {need.world_size} ranks"
            yield Fault("train.optimizer", message, hint)
        elif train.fsdp.offload != "none":
            message = f"{train.optimizer} needs whole weights on the GPU, and FSDP holds them in the node's memory"
            yield Fault("train.fsdp.offload", message, 'write "none"')
    if train.liger and not need.gpus_per_node:
        yield Fault("train.liger", "Liger's kernels are for GPUs, this stage has none", "remove it")


def memory_hint(recipe: Recipe) -> str:
    """What to do where weights, gradients and optimizer do not fit."""
    train = recipe.train
    if train is None or train.engine not in SHARDED:
        return 'use more ranks with tensor or pipeline, or tuner = "lora"'
    divided = train.fsdp is not None or (train.deepspeed is not None and train.deepspeed.stage == 3)
    return ("use more ranks" if divided else "use stage = 3") + ', tuner = "lora" or "qlora", or offload = "cpu"'


def engine_warnings(recipe: Recipe, facts: ModelFacts) -> Iterator[str]:
    """What the engine will do otherwise than one may think."""
    train = recipe.train
    if train is None:
        return
    if train.engine not in SHARDED:
        yield from family_warnings(train, facts)
        return
    if facts.experts and train.tuner != "full":
        yield f"train.tuner: experts get no adapters with {train.engine}, since PEFT adapts linear layers alone"
