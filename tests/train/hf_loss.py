"""Prints what transformers makes of a trained model, as JSON: hf_loss.py PLAN EXPORTED STEP (in the train environment).

loss: of the exported model on the global batch of one step, by a forward pass that shares no code with training.
validation_loss: of the rows that it was validated with, if it was.
merged_difference: largest difference of logits between the exported model and base model plus adapter.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.plan import Plan, from_json
from launcher.record import read_json
from launcher.work.corpus import tokenise
from launcher.work.data import problems
from launcher.work.megatron.batches import Batches
from launcher.work.samples import SampleLike


def main(plan_file: str, exported: str, step: str) -> None:
    print(json.dumps(looked_at(from_json(Path(plan_file).read_text()), Path(exported), int(step))))


def looked_at(plan: Plan, exported: Path, step: int) -> dict[str, float]:
    """`loss` and `merged_difference` of an exported model."""
    options = plan.stage("train").options
    train, base = options["train"], options["model"]["path"]
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    samples = tokenise(
        problems(options["data"], "train"),
        tokenizer,
        method=train["method"],
        sequence_length=train["sequence_length"],
    )
    batches = Batches(samples, train, padding=0, replica=0, replicas=1, context_rank=0, context_ranks=1)
    loss, logits = _judged(model, batches.of_step(step))
    found = {"loss": loss}
    if train.get("validation"):
        rows = problems(options["data"], "evaluation")[: train["validation"]["limit"]]
        held_out = tokenise(rows, tokenizer, method=train["method"], sequence_length=train["sequence_length"])
        found["validation_loss"], _ = _judged(model, held_out)
    adapter = Path(plan.run_dir) / "stages" / "train" / "artifact"
    settings = read_json(adapter / "adapter_config.json")
    experts = getattr(model.config, "num_experts", 0)
    if settings is not None and not (experts and settings.get("use_dora")):  # PEFT has no DoRA of experts
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        with torch.no_grad():
            found["merged_difference"] = max(
                float((adapted(torch.tensor([sample.tokens])).logits[0, :-1] - merged).abs().max())
                for sample, merged in zip(batches.of_step(step), logits, strict=True)
            )
    return found


@torch.no_grad()
def _judged(model: Any, samples: Sequence[SampleLike]) -> tuple[float, list[Any]]:
    """Mean loss of the tokens that count, and the logits of each sample."""
    total, count, logits = 0.0, 0, []
    for sample in samples:
        tokens = torch.tensor([sample.tokens])
        logits.append(model(tokens).logits[0, :-1])
        losses = torch.nn.functional.cross_entropy(logits[-1], tokens[0, 1:], reduction="none")
        mask = torch.tensor(sample.trained[1:])
        total += float(losses[mask].sum())
        count += int(mask.sum())
    return total / count, logits


if __name__ == "__main__":
    main(*sys.argv[1:])
