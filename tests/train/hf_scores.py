"""Prints the scores that transformers gives with a reward model, as JSON: hf_scores.py PLAN EXPORTED STEP.

chosen, rejected: mean scores of the answers of one step's global batch, padded as a batch.
merged_difference: largest difference of scores between the exported model and base model plus adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from launcher.plan import from_json
from launcher.work.data import problems
from launcher.work.megatron.pairs import PairBatches, tokenise_pairs


def main(plan_file: str, exported: str, step: str) -> None:
    plan = from_json(Path(plan_file).read_text())
    options = plan.stage("train").options
    train, base = options["train"], options["model"]["path"]
    tokenizer = AutoTokenizer.from_pretrained(exported)
    length, seed = train["sequence_length"], train["seed"]
    rows = problems(options["data"], "train")
    pairs = tokenise_pairs(rows, tokenizer, method="rm", sequence_length=length, seed=seed, padding=0)
    place = {"padding": 0, "replica": 0, "replicas": 1, "context_rank": 0, "context_ranks": 1}
    batch = PairBatches(pairs, train, single=False, **place).of_step(int(step))
    rows_by_id = {row.id: row for row in rows}

    def scores(model: Any) -> Any:
        """Of all chosen, then of all rejected answers; the texts are tokenised anew, as a user would."""
        talks = [
            [*rows_by_id[pair.id].messages, {"role": "assistant", "content": answer}]
            for second in (False, True)
            for pair in batch
            for answer in [rows_by_id[pair.id].rejected if second else rows_by_id[pair.id].answer]
        ]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        inputs = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            return model.eval()(**inputs).logits[:, 0]

    model, report = AutoModelForSequenceClassification.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"], report
    assert not report["unexpected_keys"], report
    merged = scores(model)
    chosen, rejected = merged.chunk(2)
    found = {"chosen": float(chosen.mean()), "rejected": float(rejected.mean()), "labels": model.config.num_labels}
    adapter = Path(plan.run_dir) / "stages" / "train" / "artifact"
    if (adapter / "adapter_config.json").is_file():
        from peft import PeftModel

        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        plain.config.pad_token_id = model.config.pad_token_id
        found["merged_difference"] = float((scores(PeftModel.from_pretrained(plain, adapter)) - merged).abs().max())
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
