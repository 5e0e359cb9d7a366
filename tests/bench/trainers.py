"""One trainer of the benchmark: trainers.py loop|bare|trl SETTINGS (in the train environment).

It trains for ever, and only while it is told to: a line on stdin is a number of steps, the answer a JSON list of the
seconds that they took, by the clock and of the processor, and of the tokens in them, padding not counted. All have the
same model, rows and number format.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENOUGH = 10**9


class Turns:
    """What is told by stdin, and answered on what was stdout when the program began."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # libraries print
        self.left = 0
        self.tokens = 0
        self.started = (0.0, 0.0)

    def begin(self) -> None:
        """Wait for the first turn: everything is ready."""
        self._next()

    def step(self, tokens: int) -> None:
        """One step is done; returns when the next may begin."""
        self.tokens += tokens
        self.left -= 1
        if self.left:
            return
        wall, processor = (now - then for now, then in zip(_now(), self.started, strict=True))
        print(json.dumps([wall, processor, self.tokens]), file=self.out, flush=True)
        self._next()

    def _next(self) -> None:
        line = sys.stdin.readline()
        if not line.strip():
            os._exit(0)
        self.left, self.tokens = int(line), 0
        self.started = _now()


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def loop(turns: Turns, plan: str) -> None:
    """swiftlaunch's train stage as a job runs it, with events and trackers, without a checkpoint in between."""
    from launcher.work import train
    from launcher.work.megatron import loop as module

    context = _context(plan)
    lengths = module.NextToken.lengths

    def event(kind: str, **fields: Any) -> None:
        report(kind, **fields)
        if kind == "step":
            trained, _ = lengths(told[0], fields["step"] - 1)
            turns.step(sum(trained))

    told: list[Any] = []
    plain = module.Loop.train_until_done

    def train_until_done(self: Any, progress: Any) -> Any:
        told.append(self.objective)
        turns.begin()
        return plain(self, progress)

    module_loop: Any = module.Loop
    module_loop.train_until_done = train_until_done
    report = context.event
    context.event = event  # type: ignore[method-assign]
    train.run(context)


def bare(turns: Turns, plan: str) -> None:
    """Megatron-core's schedule and optimizer on the same model and batches, made before; nothing is told of a step."""
    from launcher.topology import Layout
    from launcher.work.megatron import process
    from launcher.work.models import training_tokenizer

    context = _context(plan)
    settings = context.options["train"]
    layout = Layout(**settings["layout"])
    process.prepare()
    process.join(context, layout, seed=settings["seed"])
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from launcher.work.megatron.feed import feed
    from launcher.work.megatron.model import build, wrap
    from launcher.work.megatron.optimizer import make_optimizer

    place = {"replica": 0, "replicas": 1, "context_rank": 0, "context_ranks": 1}
    batches = feed(context, training_tokenizer(context.options["model"]), place, tensor_ranks=1).batches
    model = build(Path(context.options["model"]["path"]), settings, layout)
    wrap(model, settings, distributed_optimizer=False)
    optimizer = make_optimizer(model.chunks, settings, distributed=False)
    model.config.grad_scale_func = optimizer.scale_loss
    (chunk,) = model.chunks
    count, size, length = batches.micro_batches, batches.micro_batch_size, batches.sequence_length
    init_num_microbatches_calculator(0, None, count * size, size, 1)
    passes = get_forward_backward_func()

    def loss(mask: Any, out: Any) -> Any:
        tokens = mask.sum()
        total = (out * mask).sum()
        return total, tokens.int(), {}

    def forward(made: Iterator[Any], part: Any) -> Any:
        batch = next(made)
        out = part(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            attention_mask=None,
            labels=batch.labels,
            packed_seq_params=batch.packed,
        )
        return out, lambda found: loss(batch.loss_mask, found)

    known = [
        (list(batches.micro(number)), sum(sample.length for sample in batches.of_step(number))) for number in range(64)
    ]
    turns.begin()
    step = 0
    while True:
        made, tokens = known[step % len(known)]
        chunk.zero_grad_buffer()
        optimizer.zero_grad()
        passes(
            forward_step_func=forward,
            data_iterator=iter(made),
            model=chunk,
            num_microbatches=count,
            seq_length=length,
            micro_batch_size=size,
            forward_only=False,
        )
        optimizer.step()
        step += 1
        turns.step(tokens)


def trl(turns: Turns, settings: str) -> None:
    """TRL's SFTTrainer, without a checkpoint in between; without recomputed activations too, which are its default."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    given = json.loads(settings)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rows = [json.loads(line) for line in Path(given["rows"]).read_text().splitlines()]
    turn = {"prompt": "user", "completion": "assistant"}
    talks = [{part: [{"role": role, "content": row[part]}] for part, role in turn.items()} for row in rows]
    config = SFTConfig(
        output_dir=given["folder"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=given["batch"],
        max_length=given["length"] + 1,
        packing=given["packing"],
        learning_rate=given["learning_rate"],
        lr_scheduler_type="constant",
        optim="adamw_torch",
        max_steps=ENOUGH,
        save_strategy="no",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(given["model"], dtype=torch.float32)
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(talks),
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
    )
    collate: Callable[[Any], Any] = trainer.data_collator
    waiting: list[int] = []  # tokens of batches that were made; one is made ahead of its step

    def counted(features: Any) -> Any:
        batch = collate(features)
        mask = batch.get("attention_mask")
        waiting.append(int(mask.sum()) if mask is not None else batch["input_ids"].numel())
        return batch

    class Pace(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.step(waiting.pop(0))

    trainer.data_collator = counted
    trainer.add_callback(Pace())
    trainer.train()


def _context(plan: str) -> Any:
    from launcher.plan import from_json
    from launcher.work.context import from_environment

    context = from_environment(from_json(Path(plan).read_text()), "train", os.environ)
    context.files.attempt("train", 1).mkdir(parents=True)
    return context


if __name__ == "__main__":
    {"loop": loop, "bare": bare, "trl": trl}[sys.argv[1]](Turns(), sys.argv[2])
