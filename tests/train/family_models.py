"""Makes models in one process and what transformers makes of some tokens: family_models.py PARENT KIND...

PARENT/KIND is the model, PARENT/KIND.reference a safetensors file of tokens, [sequences, tokens], and their logits.
Runs in the train environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from make_model import main as make
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def main(parent: str, *kinds: str) -> None:
    for kind in kinds:
        folder = Path(parent) / kind
        make(str(folder), kind)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(model.config.vocab_size, (2, 96), generator=generator)
        with torch.no_grad():
            logits = model(input_ids=tokens).logits
        save_file({"tokens": tokens, "logits": logits.contiguous()}, folder.with_suffix(".reference"))


if __name__ == "__main__":
    main(*sys.argv[1:])
