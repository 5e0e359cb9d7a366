"""Writes a tiny Q4_1 GGUF with a byte-level tokenizer: make_gguf.py FILE. Prints its embedding, de-quantized, as JSON.

Runs in the transformers environment.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize
from tokenizers import pre_tokenizers

HIDDEN, WIDTH, HEADS, KV_HEADS, LAYERS = 64, 128, 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)

tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "\u0120\u0120"]
writer = GGUFWriter(sys.argv[1], "llama")
writer.add_block_count(LAYERS)
writer.add_context_length(256)
writer.add_embedding_length(HIDDEN)
writer.add_feed_forward_length(WIDTH)
writer.add_head_count(HEADS)
writer.add_head_count_kv(KV_HEADS)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_freq_base(10000.0)
writer.add_rope_dimension_count(HIDDEN // HEADS)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("gpt2")
writer.add_tokenizer_pre("smollm")
writer.add_token_list(tokens)
writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
writer.add_token_merges(["\u0120 \u0120"])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_pad_token_id(2)
writer.add_chat_template(TEMPLATE)

random = np.random.default_rng(7)


def matrix(name: str, rows: int, columns: int) -> np.ndarray:
    packed = quantize(random.normal(0, 0.1, (rows, columns)).astype(np.float32), GGMLQuantizationType.Q4_1)
    writer.add_tensor(f"{name}.weight", packed, raw_dtype=GGMLQuantizationType.Q4_1)
    return packed


def ones(name: str) -> None:
    writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))


embedding = dequantize(matrix("token_embd", len(tokens), HIDDEN), GGMLQuantizationType.Q4_1)
ones("output_norm")
key_width = HIDDEN // HEADS * KV_HEADS
for layer in range(LAYERS):
    ones(f"blk.{layer}.attn_norm")
    ones(f"blk.{layer}.ffn_norm")
    matrix(f"blk.{layer}.attn_q", HIDDEN, HIDDEN)
    matrix(f"blk.{layer}.attn_k", key_width, HIDDEN)
    matrix(f"blk.{layer}.attn_v", key_width, HIDDEN)
    matrix(f"blk.{layer}.attn_output", HIDDEN, HIDDEN)
    matrix(f"blk.{layer}.ffn_gate", WIDTH, HIDDEN)
    matrix(f"blk.{layer}.ffn_up", WIDTH, HIDDEN)
    matrix(f"blk.{layer}.ffn_down", HIDDEN, WIDTH)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
print(json.dumps({"embedding": [float(value) for value in embedding.flatten()], "vocabulary": len(tokens)}))
