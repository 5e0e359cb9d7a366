"""What mcore-bridge 1.6.5 does not know, or gets wrong, of families that it trains well otherwise."""

from __future__ import annotations

import functools
from typing import Any

import torch

# of the norms within multi-head latent attention, whatever rms_norm_eps says (transformers, DeepseekV3RMSNorm)
LATENT_NORM_EPSILON = 1e-6


def family_settings(architecture: str) -> dict[str, Any]:
    """Settings that config.json does not lead mcore-bridge to."""
    if architecture == "mistral":  # Llama's layers and names, without biases
        return {"mcore_model_type": "gpt", "add_qkv_bias": False}
    if architecture == "deepseek_v3":  # said by the key scoring_func, which transformers 5 no longer writes
        return {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True}
    return {}


def mend_model(chunk: Any, architecture: str) -> None:
    """Put right what differs from transformers in one built chunk."""
    for name, module in chunk.named_modules():
        if architecture == "glm4" and hasattr(module, "post_mlp_layernorm"):
            module.sharded_state_dict = functools.partial(_glm4_mlp_state, module, module.sharded_state_dict)
        elif name.endswith(("linear_q_up_proj", "linear_kv_up_proj")):
            module.eps = LATENT_NORM_EPSILON
        elif name.endswith(("linear_q_down_proj", "linear_kv_down_proj")):
            # Whole on every tensor-parallel rank, but marked as split: the gradient norm would count it once per rank,
            # and an adapter's B would be another one on each.
            module.weight.tensor_model_parallel = False
    for name, parameter in chunk.named_parameters() if architecture == "gpt_oss" else ():
        if ".experts." in name and ".bias" in name:
            # Marked as the experts' weights are, or the gradient norm would leave out those of all ranks but the first.
            parameter.tensor_model_parallel = True


def _glm4_mlp_state(mlp: Any, plain: Any, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> Any:
    """The norm behind the MLP is whole on every tensor-parallel rank, of which one saves it."""
    from megatron.core import parallel_state
    from megatron.core.transformer.utils import sharded_state_dict_default

    norm = sharded_state_dict_default(
        mlp.post_mlp_layernorm,
        f"{prefix}post_mlp_layernorm.",
        sharded_offsets,
        metadata,
        tp_group=parallel_state.get_tensor_model_parallel_group(),
    )
    return plain(prefix, sharded_offsets, metadata) | norm


def mend_export(bridge: Any, architecture: str) -> None:
    """Let mcore-bridge's converter write what it has read."""
    if architecture == "glm4":
        _fuse_gates(bridge)
    elif architecture == "gpt_oss":
        _leave_biases(bridge)


def _fuse_gates(bridge: Any) -> None:
    """GLM-4's gate and up are one matrix in transformers; they would come out as two that nothing loads."""
    plain = bridge._set_layer_mlp

    def fused(layer: Any, state: Any, index: int, to_mcore: bool, **options: Any) -> Any:
        found = plain(layer, state, index, to_mcore, **options)
        for end in () if to_mcore else ("weight", "lora_A.weight", "lora_B.weight"):
            gate, up = (found.pop(f"mlp.{half}_proj.{end}", None) for half in ("gate", "up"))
            if gate is not None:  # the halves of an adapter have the same A
                found[f"mlp.gate_up_proj.{end}"] = gate if end == "lora_A.weight" else torch.cat([gate, up])
        return found

    bridge._set_layer_mlp = fused


def _leave_biases(bridge: Any) -> None:
    """An adapter has no biases; those of adapted layers would be looked for in it."""
    plain = bridge._set_state_dict

    def weights(module: Any, key: str, *rest: Any, **options: Any) -> None:
        if not (bridge._peft_format and key.endswith(".bias")):
            plain(module, key, *rest, **options)

    bridge._set_state_dict = weights
