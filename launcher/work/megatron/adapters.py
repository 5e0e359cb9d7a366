"""Adapters on Megatron-core's linear layers: which layers get one, what it starts from, and how it is told to PEFT."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from launcher.families import target_layers


def adapt(chunk: Any, train: Mapping[str, Any], known: Mapping[str, Sequence[str]]) -> Any:
    """Put adapters on layers `known` of one chunk, whose weights are loaded, so that training starts at the base model.

    A is random by name and B zero; DoRA's magnitudes are the norms of the rows. PiSSA's factors are there, to be
    loaded or found by `begin`.
    """
    from peft import LoraConfig, get_peft_model

    from launcher.work.megatron.adapted import AdaptedLinear, adaptable

    lora = train["lora"]
    layers = "|".join(target_layers(lora.get("target_modules") or ["all-linear"], known))
    # no task_type: PEFT would then expect a transformers model
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora.get("dropout", 0.0),
        use_rslora=train["tuner"] == "rslora",
        target_modules=rf".*\.({layers})$",
    )
    config._register_custom_module(dict.fromkeys(adaptable(), AdaptedLinear))
    adapted = get_peft_model(chunk, config)
    for name, layer in adapted_layers(chunk):
        _initialise(layer, _global_name(chunk, name), seed=train["seed"])
        if train["tuner"] == "dora":
            layer.add_magnitude()
        elif train["tuner"] == "pissa":
            layer.add_start()
    return adapted


def begin(chunks: Sequence[Any], train: Mapping[str, Any]) -> None:
    """Find what PiSSA starts from, unless a checkpoint was loaded: that takes a while. Every rank calls it together."""
    if train["tuner"] != "pissa":
        return
    from launcher.work.megatron import pissa

    for chunk in chunks:
        pissa.begin(layer for _, layer in adapted_layers(chunk))


def adapted_layers(chunk: Any) -> Iterator[tuple[str, Any]]:
    """The chunk's layers with an adapter, by name."""
    from launcher.work.megatron.adapted import AdaptedLinear

    for name, module in chunk.named_modules():
        if isinstance(module, AdaptedLinear):
            yield name, module


def _initialise(layer: Any, key: str, *, seed: int) -> None:
    """Fill A from a generator of its own: the same values in every layout, each rank taking its slice."""
    from megatron.core import parallel_state

    if not layer.is_expert:
        # These are whole on every tensor-parallel rank, but Transformer Engine marks all weights as split, and the
        # gradient norm would count them once per rank.
        one = layer.lora_B if layer.is_parallel_a else layer.lora_A
        factors = (layer.lora_A, layer.lora_B) if layer.is_whole else (one,)
        for factor in factors:
            factor["default"].weight.tensor_model_parallel = False
    adapter = layer.lora_A["default"]
    for suffix, weight in adapter.named_parameters():
        expert = ""
        if layer.is_grouped:
            first = parallel_state.get_expert_model_parallel_rank() * adapter.num_gemms
            expert = f".{first + int(suffix.removeprefix('weight'))}"
        split = layer.tp_size if layer.is_parallel_a else 1
        columns = weight.shape[1] * split
        digest = hashlib.sha256(f"{seed}:{key}{expert}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
        values = torch.empty(weight.shape[0], columns).uniform_(
            -1 / math.sqrt(columns), 1 / math.sqrt(columns), generator=generator
        )
        if split > 1:
            values = values.chunk(split, dim=1)[parallel_state.get_tensor_model_parallel_rank()]
        with torch.no_grad():
            weight.copy_(values)


def _global_name(chunk: Any, name: str) -> str:
    """The module's name with the layer counted over the whole model, not over this rank."""
    match = re.match(r"(.*\blayers\.)(\d+)(\..*)", name)
    if match is None:
        return name
    prefix, index, rest = match.groups()
    return f"{prefix}{chunk.decoder.layers[int(index)].layer_number - 1}{rest}"
