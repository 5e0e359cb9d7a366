"""Rules of the engines deepspeed and fsdp that span several keys."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.recipe.faults import Problem
from launcher.recipe.training import SHARDED, Train, TrainLayout

LOW_RANK_OPTIMIZERS = ("galore_adamw", "apollo_adamw")  # whose states are of projections of whole matrices


def sharded_rules(train: Train) -> Iterator[Problem]:
    """What does not go together."""
    for engine in SHARDED:
        if engine != train.engine and getattr(train, engine) is not None:
            yield Problem(("train", engine), f'is for engine = "{engine}", not "{train.engine}"', "remove it")
    if train.optimizer in LOW_RANK_OPTIMIZERS and train.tuner != "full":
        message = f"projects the gradients of whole matrices; the adapters of {train.tuner} are small already"
        yield Problem(("train", "optimizer"), message, 'use adamw, or tuner = "full"')
    if train.tuner == "qlora" and train.engine == "megatron":
        message = "needs weights in 4 bits, which Megatron-core's layers cannot read"
        yield Problem(("train", "tuner"), f"qlora {message}", 'use engine = "fsdp" or "deepspeed"')
    if train.engine not in SHARDED:
        if train.liger:
            yield Problem(
                ("train", "liger"), "is for deepspeed and fsdp: Megatron-core has its own kernels", "remove it"
            )
        return
    for key in train.layout.model_fields_set:
        if getattr(train.layout, key) != TrainLayout.model_fields[key].default:
            message = f"{train.engine} divides weights and states among all ranks, and has no {key} parallelism"
            hint = 'remove it, or use engine = "megatron"'
            yield Problem(("train", "layout", key), message.replace("_parallel parallelism", " parallelism"), hint)
    if train.activation_recompute == "selective":
        yield Problem(("train", "activation_recompute"), f"{train.engine} has full or none", 'write "full"')
    if train.deepspeed is not None and train.deepspeed.stage == 3 and train.tuner in ("qlora", "pissa"):
        message = f"{train.tuner} needs whole weights when it begins, and stage 3 divides them while they are read"
        yield Problem(("train", "deepspeed", "stage"), message, 'use stage = 2, or engine = "fsdp"')
    preference = train.preference
    if train.tuner == "pissa" and preference is not None and preference.reference == "adapter-off":
        message = "without its adapters a PiSSA model lacks the largest part of each matrix: it is no reference"
        yield Problem(("train", "preference", "reference"), message, 'write reference = "precomputed"')
