"""Families of models on Megatron-core: which of them it trains here, and which linear layers they have there.

Each of `TRAINED` is compared with transformers by tests/train/test_families.py: logits, losses and gradients over
layouts, and the export. What a config.json can say beyond that is refused, for it would train another model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.errors import Fault, InputError

TRAINED = (
    *("deepseek_v2", "deepseek_v3", "glm4", "glm4_moe", "gpt_oss", "llama", "mistral", "olmoe"),
    *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"),
)
_LATENT = ("deepseek_v2", "deepseek_v3")
_GROUPED_LAYERS = {"linear_qkv": ("q_proj", "k_proj", "v_proj"), "linear_proj": ("o_proj",)}
_LATENT_LAYERS = {
    "linear_kv_down_proj": ("kv_a_proj_with_mqa",),
    "linear_kv_up_proj": ("kv_b_proj",),
    "linear_proj": ("o_proj",),
}
_PLAIN_QUERIES = {"linear_q_proj": ("q_proj",)}
_COMPRESSED_QUERIES = {"linear_q_down_proj": ("q_a_proj",), "linear_q_up_proj": ("q_b_proj",)}


def refusal(config: Mapping[str, Any]) -> str:
    """Why Megatron-core does not train the model of this config.json here, "" where it does."""
    architecture = config.get("model_type")
    if architecture not in TRAINED:
        return f"Megatron-core does not train {architecture} models here"
    return next(_differences(str(architecture), config), "")


def _differences(architecture: str, config: Mapping[str, Any]) -> Iterator[str]:
    """What mcore-bridge 1.6 would leave out, or do otherwise than transformers, without a word."""
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "") if isinstance(quantization, Mapping) else ""
        yield f"its weights are quantized ({method or 'in some way'}), and Megatron-core trains plain ones"
    if config.get("hidden_act", "silu") != "silu":
        yield f"the activation {config['hidden_act']} would be trained as silu"
    if config.get("attention_bias") and architecture not in ("glm4", "glm4_moe", "gpt_oss"):
        yield "the biases of its attention (attention_bias) would be lost in part"
    if config.get("mlp_bias"):
        yield "the biases of its MLP (mlp_bias) would be lost"
    windowed = config.get("use_sliding_window", architecture == "mistral") and config.get("sliding_window")
    if architecture != "gpt_oss" and windowed:
        yield f"its window of {windowed} tokens would be trained as full attention"
    if config.get("clip_qkv") is not None:
        yield "clipped queries, keys and values (clip_qkv) would be trained unclipped"
    if config.get("decoder_sparse_step", 1) != 1 or config.get("mlp_only_layers"):
        yield "layers without experts between those that have some (decoder_sparse_step, mlp_only_layers) are not told"
    constants = config.get("swiglu_limit", 7.0), config.get("swiglu_alpha", 1.702)
    if architecture == "gpt_oss" and constants != (7.0, 1.702):
        yield "its activation has other constants than gpt-oss (swiglu_limit, swiglu_alpha)"
    if architecture in _LATENT:
        yield from _of_latent_attention(config)
    if architecture in (*_LATENT, "glm4_moe"):
        yield from _of_routing(architecture, config)


def _of_latent_attention(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("rope_interleave") is False:
        yield "rotary positions that are not interleaved (rope_interleave) would be trained interleaved"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) == "yarn" and not {"mscale", "mscale_all_dim"} <= rope.keys():
        yield "yarn without mscale and mscale_all_dim is not known to mcore-bridge"


def _of_routing(architecture: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Experts are chosen in groups: Megatron-core judges a group by the sum of its best num_experts_per_tok/topk_group.

    DeepSeek-V2 judges it by its best expert, DeepSeek-V3 and GLM by the sum of the best two.
    """
    by_softmax = architecture == "deepseek_v2"
    groups, chosen, experts = (config.get(key) or 1 for key in ("n_group", "topk_group", "num_experts_per_tok"))
    if by_softmax and config.get("topk_method", "greedy") == "greedy" and groups > 1:
        yield "n_group has no meaning with topk_method = greedy, and would have one"
    elif groups > 1 and experts // chosen != (1 if by_softmax else 2):
        yield (
            f"groups of experts are judged by the best {1 if by_softmax else 2} in transformers, and would be by the "
            f"best {experts // chosen} (num_experts_per_tok / topk_group)"
        )
    if experts > 1 and bool(config.get("norm_topk_prob", not by_softmax)) == by_softmax:
        yield f"norm_topk_prob = {str(by_softmax).lower()} is not what transformers and Megatron-core both do"


def linear_layers(architecture: str, *, compressed_queries: bool = False) -> dict[str, tuple[str, ...]]:
    """Layers that can take an adapter: Megatron-core's name -> the Hugging Face layers that it holds.

    `compressed_queries` tells the two forms of multi-head latent attention apart (q_lora_rank). gpt_oss has no linear
    layers in its experts, in transformers: those are tensors of all experts together, which PEFT cannot adapt.
    """
    if architecture == "gpt_oss":
        return dict(_GROUPED_LAYERS)
    gates = ("gate_up_proj",) if architecture == "glm4" else ("gate_proj", "up_proj")
    mlp = {"linear_fc1": gates, "linear_fc2": ("down_proj",)}
    if architecture in _LATENT:
        return {**(_COMPRESSED_QUERIES if compressed_queries else _PLAIN_QUERIES), **_LATENT_LAYERS, **mlp}
    return {**_GROUPED_LAYERS, **mlp}


def target_layers(names: Sequence[str], layers: Mapping[str, Sequence[str]]) -> list[str]:
    """Megatron-core's layers for `lora.target_modules`, which may use the names of either side of `layers`.

    Raises InputError for names that are none, and where a fused layer is named in part: it takes one adapter.
    """
    where = "train.lora.target_modules"
    wanted = set(names)
    if "all-linear" in wanted:
        return list(layers)
    chosen, faults = [], []
    for layer, parts in layers.items():
        if layer in wanted or wanted.issuperset(parts):
            chosen.append(layer)
        elif wanted.intersection(parts):
            message = f"{', '.join(parts)} are one matrix in Megatron-core and take one adapter"
            faults.append(Fault(where, message, "name all of them, or none"))
        wanted -= {layer, *parts}
    if wanted:
        message = f"not linear layers of this model: {', '.join(sorted(wanted))}"
        known = sorted({part for parts in layers.values() for part in parts})
        faults.append(Fault(where, message, f"all-linear, or {', '.join(known)}"))
    if faults:
        raise InputError(faults)
    return chosen
