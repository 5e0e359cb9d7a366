"""Writes a tiny random model with a character tokenizer: make_model.py FOLDER llama|qwen3|moe|glm.

Runs in the train environment.
"""

from __future__ import annotations

import string
import sys
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

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

# GLM-4.5: experts that share the work with one that sees every token, chosen by scores with a bias
BALANCED = {
    "head_dim": 16,
    "tie_word_embeddings": False,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "num_nextn_predict_layers": 0,
}


def main(folder: str, kind: str) -> None:
    vocabulary = {symbol: index for index, symbol in enumerate([*SPECIAL, *string.printable])}
    while len(vocabulary) % 8:
        vocabulary[f"<|unused{len(vocabulary)}|>"] = len(vocabulary)
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[0]))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    plain.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = TEMPLATE
    sizes = {**SIZES, "vocab_size": len(vocabulary)}
    torch.manual_seed(0)
    if kind == "llama":
        model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))
    elif kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, **QWEN3))
    elif kind == "glm":
        model = Glm4MoeForCausalLM(Glm4MoeConfig(**sizes, **BALANCED))
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                torch.nn.init.normal_(buffer, 3.0, 0.05)  # bf16 would round these to steps of 0.016
    else:
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **QWEN3, **EXPERTS))
    for name, parameter in model.named_parameters():
        if "norm" in name:  # away from 1, where a mix-up of norms would not show
            torch.nn.init.normal_(parameter, 1.0, 0.2)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
