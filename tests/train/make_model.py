"""Writes tiny random models with a character tokenizer: make_model.py FOLDER KIND [FOLDER KIND ...]

Sizes are small; what makes a family different from others is as in its releases. Runs in the train environment.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "bos_token_id": None,
}
QWEN3 = {"head_dim": 16, "tie_word_embeddings": False}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
}
# experts beside some that see every token, behind a first layer without any
SHARED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}
# kind -> model_type, settings
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", {"head_dim": 32, "rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True, "use_sliding_window": False, "sliding_window": 16}),
    "qwen3": ("qwen3", QWEN3),
    "moe": ("qwen3_moe", {**QWEN3, **EXPERTS}),
    "qwen2_moe": (
        "qwen2_moe",
        {**EXPERTS, "norm_topk_prob": False, "shared_expert_intermediate_size": 48, "tie_word_embeddings": False},
    ),
    "olmoe": (
        "olmoe",
        {
            **{"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32, "norm_topk_prob": False},
            **{"num_key_value_heads": 4, "tie_word_embeddings": False},
        },
    ),
    "glm4": ("glm4", {"head_dim": 16, "attention_bias": True, "partial_rotary_factor": 0.5}),
    "glm": (
        "glm4_moe",
        {
            **SHARED,
            **{"head_dim": 32, "attention_bias": True, "use_qk_norm": True, "partial_rotary_factor": 0.5},
            **{"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
            **{"tie_word_embeddings": False, "num_nextn_predict_layers": 0},
        },
    ),
    # V2-Lite: whole queries, experts that all compete, in weights that do not add up to 1
    "deepseek_v2": (
        "deepseek_v2",
        {
            **LATENT,
            **SHARED,
            **{"q_lora_rank": None, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
            **{"num_experts_per_tok": 3, "routed_scaling_factor": 1.0},
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    # V3: 2 of 4 groups, each judged by its best two experts; an epsilon that its latent norms do not have
    "deepseek_v3": (
        "deepseek_v3",
        {
            **LATENT,
            **SHARED,
            **{"q_lora_rank": 32, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5},
            **{"rms_norm_eps": 1e-3, "num_nextn_predict_layers": 1},
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    "gpt_oss": (
        "gpt_oss",
        {
            **{"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48},
            **{"sliding_window": 16, "rope_parameters": {**YARN, "truncate": False}},
        },
    ),
}


def main(*words: str) -> None:
    tokenizer = character_tokenizer()
    for folder, kind in zip(words[::2], words[1::2], strict=True):
        make(kind, tokenizer).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if kind == "deepseek_v3":
            add_next_token_layer(Path(folder) / "model.safetensors")


def make(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A model in fp32. Norms and biases are away from 1 and 0, where a mix-up would not show."""
    model_type, settings = KINDS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **settings, "vocab_size": len(tokenizer)})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, weight in [*model.named_parameters(), *model.named_buffers()]:
        if "norm" in name:
            torch.nn.init.normal_(weight, 1.0, 0.2)
        elif name.endswith("e_score_correction_bias"):
            torch.nn.init.normal_(weight, 3.0, 0.2)  # bf16 would round these to steps of 0.016
        elif name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(weight, 0.0, 0.5)
    return model.eval()


def character_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each printable character, and a chat template."""
    vocabulary = {symbol: index for index, symbol in enumerate([*SPECIAL, *string.printable])}
    while len(vocabulary) % 8:
        vocabulary[f"<|unused{len(vocabulary)}|>"] = len(vocabulary)
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def add_next_token_layer(file: Path) -> None:
    """Some of a multi-token prediction layer, which releases have behind the last one and transformers leaves out."""
    layer, hidden = f"model.layers.{SIZES['num_hidden_layers']}", SIZES["hidden_size"]
    extra = {f"{layer}.enorm.weight": torch.randn(hidden), f"{layer}.eh_proj.weight": torch.randn(hidden, 2 * hidden)}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
