"""Prints the loss of a conversation's last turn by transformers' own loss: reference_nll.py MODEL MESSAGES_JSON.

The labels are cut by the template's text, not by tokens, so this does not share the worker's way of finding them.
"""

from __future__ import annotations

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, messages = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
text = tokenizer.apply_chat_template(messages, tokenize=False)
start = text.rindex(messages[-1]["content"])
encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt")
labels = encoded["input_ids"].clone()
labels[0, encoded["offset_mapping"][0, :, 0] < start] = -100
with torch.inference_mode():
    loss = model(encoded["input_ids"], labels=labels).loss
count = int((labels[0, 1:] != -100).sum())
print(json.dumps({"nll": float(loss) * count, "tokens": count}))
