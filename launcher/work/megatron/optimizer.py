"""AdamW through Megatron-core, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from launcher.errors import WorkerError


def make_optimizer(chunks: list[Any], train: Mapping[str, Any], *, distributed: bool) -> Any:
    """Megatron-core's optimizer over the trainable parameters; `distributed` splits its state among replicas."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    name = train.get("optimizer", "adamw")
    if name not in ("adamw", "adam"):
        raise WorkerError(f"the megatron engine has no {name!r}", where="train.optimizer", hint="adamw or adam")
    dtype = torch.bfloat16 if train["precision"] == "bf16" else torch.float32
    config = OptimizerConfig(
        optimizer="adam",
        decoupled_weight_decay=name == "adamw",
        lr=train["learning_rate"],
        weight_decay=train.get("weight_decay", 0.0),
        adam_beta1=train.get("beta1", 0.9),
        adam_beta2=train.get("beta2", 0.95),
        adam_eps=train.get("epsilon", 1e-8),
        clip_grad=train.get("gradient_clip", 1.0) or math.inf,  # without a limit the norm is still worth a look
        bf16=train["precision"] == "bf16",
        params_dtype=dtype,
        use_distributed_optimizer=distributed,
    )
    return get_megatron_optimizer(config, chunks)


def set_rates(optimizer: Any, train: Mapping[str, Any], step: int, steps: int) -> float:
    """Set learning rate and weight decay of every group for a step; returns the learning rate."""
    rate = learning_rate(train, step, steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_mult", 1.0)
        group["weight_decay"] = train.get("weight_decay", 0.0) * group.get("wd_mult", 1.0)
    return rate


def learning_rate(train: Mapping[str, Any], step: int, steps: int) -> float:
    """The rate of one step (from 0) of `steps`: linear warm-up to the highest, then the schedule's fall."""
    highest, lowest = float(train["learning_rate"]), float(train.get("minimum_learning_rate", 0.0))
    warmup = int(train.get("warmup_steps", 0))
    if step < warmup:
        return highest * (step + 1) / warmup
    schedule = train.get("schedule", "cosine")
    if schedule == "constant":
        return highest
    start = warmup
    if schedule == "wsd":
        start = max(warmup, steps - int(train.get("decay_steps") or max(1, steps // 10)))
    share = min(1.0, max(0.0, (step - start) / max(1, steps - start)))
    left = 0.5 * (1 + math.cos(math.pi * share)) if schedule == "cosine" else 1 - share
    return lowest + (highest - lowest) * left
