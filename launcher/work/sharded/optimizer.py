"""Optimizers by the recipe's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from launcher.work.megatron.lion import Lion
from launcher.work.sharded.apollo import RANK, Apollo

PLAIN = ("adamw", "adam", "sgd", "lion")  # states are tensors of the weights' shapes, and are divided as they are
GALORE = {"rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}  # as its authors fine-tune


def make_optimizer(model: Any, train: Mapping[str, Any]) -> Any:
    """The optimizer of what is trained; vectors (norms, biases) do not decay, as in Megatron-core."""
    name, rate, decay = train["optimizer"], float(train["learning_rate"]), float(train.get("weight_decay", 0.0))
    betas = (float(train.get("beta1", 0.9)), float(train.get("beta2", 0.95)))
    adam: dict[str, Any] = {"lr": rate, "betas": betas, "eps": float(train.get("epsilon", 1e-8))}
    projections: dict[str, dict[str, Any]] = {"galore_adamw": GALORE, "apollo_adamw": {"rank": RANK}}
    groups = parameter_groups(model, decay, projections.get(name))
    if name == "adamw":
        return torch.optim.AdamW(groups, **adam)
    if name == "adam":
        return torch.optim.Adam(groups, **adam)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=betas[0])
    if name == "lion":
        return Lion(groups, lr=rate, betas=betas)
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **adam)
    if name == "galore_adamw":
        from galore_torch import GaLoreAdamW

        return GaLoreAdamW(groups, **adam, no_deprecation_warning=True)
    return Apollo(groups, **adam, seed=int(train["seed"]))


def parameter_groups(model: Any, decay: float, projection: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Groups with and without decay. `wd_mult` is what the loop multiplies the recipe's weight decay by.

    With a `projection` the matrices of linear layers are a group of their own with its settings.
    """
    matrices, vectors = [], []
    linear = {id(module.weight) for module in model.modules() if projection and isinstance(module, torch.nn.Linear)}
    projected = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        shape = getattr(parameter, "ds_shape", parameter.shape)  # of a weight that ZeRO-3 has divided
        if len(shape) < 2:
            vectors.append(parameter)
        elif id(parameter) in linear:
            projected.append(parameter)
        else:
            matrices.append(parameter)
    found = [
        {"params": matrices, "weight_decay": decay, "wd_mult": 1.0},
        {"params": vectors, "weight_decay": 0.0, "wd_mult": 0.0},
        {"params": projected, "weight_decay": decay, "wd_mult": 1.0, **(projection or {})},
    ]
    return [group for group in found if group["params"]]
