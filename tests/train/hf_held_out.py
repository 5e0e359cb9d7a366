"""Prints what transformers makes of held-out pairs with a trained model, as JSON: hf_held_out.py PLAN EXPORTED.

loss, accuracy: DPO's without smoothing, against the base model, or a reward model's without margin, both written out
here; the texts are tokenised anew, as a user would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


@torch.no_grad()
def main(plan_file: str, exported: str) -> None:
    plan = json.loads(Path(plan_file).read_text())
    options = plan["stages"][0]["options"]
    train, base = options["train"], options["model"]["path"]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    lines = Path(options["data"]["evaluation"][0]).read_text().splitlines()
    rows = [json.loads(line) for line in lines][: train["validation"]["limit"]]
    prompts = [encoded(tokenizer, asked(row), add_generation_prompt=True) for row in rows]
    kinds = [[encoded(tokenizer, answered(row, kind)) for row in rows] for kind in ("chosen", "rejected")]
    if train["method"] == "rm":
        scorer = AutoModelForSequenceClassification.from_pretrained(exported, dtype=torch.float32).eval()
        chosen, rejected = (
            torch.stack([scorer(torch.tensor([text])).logits[0, 0] for text in texts]) for texts in kinds
        )
        losses = -logsigmoid(chosen - rejected)
    else:
        now, before = (
            [torch.stack([said(model, *each) for each in zip(prompts, texts, strict=True)]) for texts in kinds]
            for model in (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (exported, base))
        )
        chosen, rejected = (after - earlier for after, earlier in zip(now, before, strict=True))
        losses = -logsigmoid(train["preference"]["beta"] * (chosen - rejected))
    print(json.dumps({"loss": float(losses.mean()), "accuracy": float((chosen > rejected).float().mean())}))


def asked(row: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}]


def answered(row: dict[str, str], kind: str) -> list[dict[str, str]]:
    return [*asked(row), {"role": "assistant", "content": row[kind]}]


def encoded(tokenizer: Any, messages: list[dict[str, str]], **more: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **more)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def said(model: Any, prompt: list[int], text: list[int]) -> Any:
    """Log-probability of what follows the prompt."""
    assert text[: len(prompt)] == prompt
    found = model(torch.tensor([text])).logits[0, :-1].log_softmax(-1)
    each = found.gather(1, torch.tensor(text[1:]).unsqueeze(1)).squeeze(1)
    return each[len(prompt) - 1 :].sum()


if __name__ == "__main__":
    main(*sys.argv[1:])
