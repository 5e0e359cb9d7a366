"""PiSSA: adapters that start as the principal part of the weights, and what becomes of them.

Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
arXiv:2404.02948: of W = U S V the r largest singular values become s B A, and W - s B A is frozen. Trained, the model
is W - s B0 A0 + s B A: against the original weights an ordinary adapter of twice the rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

FILE = "pissa.safetensors"  # in the folder of the train stage
_START = "pissa_start"


def begin(model: Any, file: Path) -> None:
    """Let the adapters of a PEFT model, not yet divided, start from its weights; `file` keeps from what.

    Later attempts read the file: a decomposition comes out otherwise on other hardware, and the frozen rest with it.
    """
    from safetensors.torch import load_file, save_file

    if dist.get_rank() == 0 and not file.exists():
        start = dict(_decomposed(model))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f".{file.name}.part")
        save_file(start, str(part))
        os.replace(part, file)
    dist.barrier()
    start = load_file(str(file))
    for name, layer in _layers(model):
        a, b = start[f"{name}.lora_A.weight"], start[f"{name}.lora_B.weight"]
        weight = layer.get_base_layer().weight
        with torch.no_grad():
            rest = weight.float() - layer.scaling["default"] * (b @ a).to(weight.device)
            weight.copy_(rest.to(weight.dtype))
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    setattr(model, _START, start)


def start_of(model: Any) -> Mapping[str, Any]:
    """The adapters as they began, by the names of an adapter's file."""
    found: Mapping[str, Any] = getattr(model, _START)
    return found


def against_the_base(trained: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """[B, -B0] [A; A0]: the adapter that takes the original weights to the trained model; its scale is the same."""
    found = dict(trained)
    for name, before in start.items():
        axis, sign = (0, 1) if ".lora_A." in name else (1, -1)
        found[name] = torch.cat([trained[name].float(), sign * before.float()], dim=axis)
    return found


def _decomposed(model: Any) -> Iterator[tuple[str, Any]]:
    for name, layer in _layers(model):
        rank, scale = layer.r["default"], layer.scaling["default"]
        weight = layer.get_base_layer().weight.detach().float()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = (values[:rank] / scale).sqrt()
        yield f"{name}.lora_A.weight", (root[:, None] * right[:rank]).contiguous().cpu()
        yield f"{name}.lora_B.weight", (left[:, :rank] * root).contiguous().cpu()


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module
