"""Weights that come in and go out unchanged: import_checks.py PLAN... (in the train environment).

For each plan the model is read as its training would read it. Its logits are compared with transformers' on a batch of
texts of two lengths, and what is written of it without a step with the files that were read. What was found lies in
found.json of the run's folder.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from launcher.plan import from_json
from launcher.record import write_json
from launcher.topology import Layout
from launcher.work import ranks
from launcher.work.context import Context, from_environment
from launcher.work.megatron import process
from launcher.work.samples import Sample
from tests.train.several import forget

LENGTH = 32
SAMPLES = [
    Sample(str(number), [3 + (number * 31 + at * at * 7) % 97 for at in range(size + 1)], [True] * (size + 1))
    for number, size in enumerate((LENGTH, LENGTH - 9))
]


def main(plans: list[str]) -> None:
    contexts = [from_environment(from_json(Path(path).read_text()), "train", os.environ) for path in plans]
    # before Megatron-core comes in: mcore-bridge puts a rotary embedding of its own into transformers
    models = {context.options["model"]["path"] for context in contexts}
    expected = {path: hf_logits(path) for path in sorted(models)}
    process.prepare()
    for context in contexts:
        layout = Layout(**context.options["train"]["layout"])
        path = Path(context.options["model"]["path"])
        process.join(context, layout, seed=1)
        difference = through(context, layout, expected[str(path)])
        ranks.leave()
        forget()
        if context.is_main:
            unequal = differing(path, context.files.artifact("train"))
            write_json(context.files.root / "found.json", {"difference": difference, "unequal": unequal})


def hf_logits(path: str) -> list[Any]:
    """Of each sample, [tokens, vocabulary], in fp32."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return [model(torch.tensor([sample.tokens[:-1]])).logits[0] for sample in SAMPLES]


def through(context: Context, layout: Layout, expected: list[Any]) -> float:
    """The largest difference of logits that any rank found; the model is written, too."""
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    from launcher.work.megatron.artifact import save_artifact
    from launcher.work.megatron.batches import Batches
    from launcher.work.megatron.forward import forward_backward
    from launcher.work.megatron.model import build, wrap
    from launcher.work.megatron.sequences import held_positions

    train, path = context.options["train"], Path(context.options["model"]["path"])
    model = build(path, train, layout)
    wrap(model, train, distributed_optimizer=False)
    batches = Batches(
        SAMPLES,
        train,
        padding=0,
        replica=0,
        replicas=1,
        context_rank=parallel_state.get_context_parallel_rank(),
        context_ranks=layout.context,
    )
    init_num_microbatches_calculator(context.rank, None, len(SAMPLES), 1, 1)
    held = torch.arange(LENGTH)
    if layout.context > 1:
        held = held_positions([LENGTH], batches.context_rank, layout.context)
    worst = torch.zeros(1, dtype=torch.float64)

    def look(batch: Any, out: Any) -> tuple[Any, Any, Any]:
        logits = gather_from_tensor_model_parallel_region(out).float()[0]
        wanted = next(each for sample, each in zip(SAMPLES, expected, strict=True) if sample.id == batch.ids[0])
        real = held < len(wanted)
        difference = (logits[real][:, : wanted.shape[1]] - wanted[held[real]]).abs().max()
        worst[0] = max(float(worst[0]), float(difference))
        return torch.zeros(()), torch.zeros((), dtype=torch.int), {}

    forward_backward(
        model.chunks,
        partial(batches.micro, 0),
        look,
        count=len(SAMPLES),
        sequences=1,
        length=LENGTH,
        labels=False,
        forward_only=True,
    )
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    save_artifact(model, context.files.artifact("train"), train, base=path)
    return float(worst[0])


def differing(read: Path, written: Path) -> list[str]:
    """Names of tensors that one folder lacks, or that differ in a bit."""
    one, two = (
        {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
        for folder in (read, written)
    )
    both = sorted(one.keys() & two.keys())
    return sorted(one.keys() ^ two.keys()) + [
        name for name in both if one[name].dtype != two[name].dtype or not one[name].equal(two[name])
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
