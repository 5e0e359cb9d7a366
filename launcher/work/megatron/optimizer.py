"""Optimizers by the recipe's names through Megatron-core, and the learning rate as a function of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

from launcher.errors import WorkerError

# Optimizers whose state is whole on every replica. Muon's step needs whole matrices; 8-bit states share a scale among
# neighbours, so that states that are divided at other places round otherwise.
WHOLE = ("muon", "adamw_8bit")


def divides_state(train: Mapping[str, Any], copies: int) -> bool:
    """Whether `copies` replicas of the same weights share the optimizer's state out among them."""
    return copies > 1 and train.get("optimizer", "adamw") not in WHOLE


def make_optimizer(chunks: list[Any], train: Mapping[str, Any], *, distributed: bool) -> Any:
    """Megatron-core's optimizer over the trainable parameters; `distributed` splits its state among replicas."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides

    name = train.get("optimizer", "adamw")
    dtype = torch.float32 if train["precision"] == "fp32" else torch.bfloat16
    config = OptimizerConfig(
        optimizer="adam",
        decoupled_weight_decay=name != "adam",
        lr=train["learning_rate"],
        weight_decay=train.get("weight_decay", 0.0),
        adam_beta1=train.get("beta1", 0.9),
        adam_beta2=train.get("beta2", 0.95),
        adam_eps=train.get("epsilon", 1e-8),
        clip_grad=train.get("gradient_clip", 1.0) or math.inf,  # without a limit the norm is still worth a look
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=distributed,
    )
    overrides = get_standard_config_overrides(config)
    if name == "muon":
        overrides |= _matrices(chunks[0].config)
    made = get_megatron_optimizer(config, chunks, overrides)
    if name not in ("adamw", "adam"):
        # Megatron-core builds Adam alone (and SGD outside of the distributed optimizer); what it builds around it,
        # fp32 copies and ranges of parameters, takes any torch optimizer.
        for part in made.chained_optimizers:
            if part.optimizer is not None:  # something of this kind is trained on this rank
                part.optimizer = _instead(part.optimizer, name, config)
    return made


def _instead(adam: Any, name: str, config: Any) -> Any:
    """The optimizer of that name over Adam's parameter groups."""
    groups = adam.param_groups
    for group in groups:
        for key in adam.defaults.keys() - {"lr", "weight_decay"}:
            group.pop(key, None)
    betas = (config.adam_beta1, config.adam_beta2)
    if name == "sgd":
        return _over(groups, torch.optim.SGD, lr=config.lr, momentum=betas[0])
    if name == "lion":
        from launcher.work.megatron.lion import Lion

        return _over(groups, Lion, lr=config.lr, betas=betas)
    if name == "muon":
        from megatron.core import parallel_state

        from launcher.work.megatron.muon import Muon

        over = parallel_state.get_tensor_model_parallel_group()
        return Muon(groups, lr=config.lr, betas=betas, eps=config.adam_eps, over=over)
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=config.lr, betas=betas, eps=config.adam_eps)
    raise WorkerError(f"the megatron engine has no {name!r}", where="train.optimizer", hint="adamw")


def _over(groups: list[dict[str, Any]], kind: Any, **settings: Any) -> Any:
    """An optimizer over groups that may hold ranges of parameters, which torch does not take at first: views."""
    made = kind([torch.zeros(0)], **settings)
    for group in groups:
        for key, value in made.defaults.items():
            group.setdefault(key, value)
    made.param_groups = groups
    return made


def _matrices(model: Any) -> dict[Any, Any]:
    """Parameter groups of the matrices of hidden layers for Muon, by what they are made of; see muon.PARTS."""
    from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate

    queries = model.num_attention_heads // model.num_query_groups
    layers: dict[str, dict[str, Any]] = {
        "linear_qkv": {"parts": (queries, 1, 1), "unit": model.kv_channels, "divided": True},
        "linear_fc1": {"parts": (1, 1) if model.gated_linear_unit else (1,), "unit": 0, "divided": True},
        "(linear_proj|linear_fc2|linear_q_proj|linear_q_up_proj|linear_kv_up_proj)": {
            "parts": (1,),
            "unit": 0,
            "divided": True,
        },
        "(linear_q_down_proj|linear_kv_down_proj)": {"parts": (1,), "unit": 0, "divided": False},
    }

    def key(layer: str) -> Any:
        # experts have a number behind "weight"
        return ParamKey(
            with_name_predicate=ParamWithNamePredicate(
                name=layer, fn=lambda _, name: re.search(rf"\.{layer}\.weight\d*$", name) is not None
            )
        )

    return {key(layer): facts for layer, facts in layers.items()}


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
