"""The train stage on Megatron-core, from options to result."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from launcher.topology import Layout
from launcher.work.context import Context
from launcher.work.data import fingerprint, problems
from launcher.work.megatron import process
from launcher.work.versions import installed_versions


def run(context: Context) -> None:
    """Train to the last step, leave the artifact, write the result."""
    started = time.monotonic()
    train = context.options["train"]
    layout = Layout(**train["layout"])
    rows = problems(context.options["data"], "train")
    base = Path(context.options["model"]["path"])

    process.prepare()
    process.join(context, layout, seed=int(train["seed"]))

    from megatron.core import parallel_state
    from transformers import AutoTokenizer

    from launcher.work.megatron.artifact import save_artifact
    from launcher.work.megatron.batches import Batches, Stream, tokenise
    from launcher.work.megatron.checkpoint import Checkpoints, Progress
    from launcher.work.megatron.loop import Loop
    from launcher.work.megatron.model import build, wrap
    from launcher.work.megatron.objective import NextToken, Preference
    from launcher.work.megatron.optimizer import make_optimizer
    from launcher.work.megatron.pairs import PairBatches
    from launcher.work.megatron.preference import METHODS, pair_batches, preference

    tokenizer = AutoTokenizer.from_pretrained(base)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    place: dict[str, Any] = {
        "padding": int(padding),
        "replica": parallel_state.get_data_parallel_rank(),
        "replicas": parallel_state.get_data_parallel_world_size(),
        "context_rank": parallel_state.get_context_parallel_rank(),
        "context_ranks": layout.context,
    }
    batches: Stream[Any]
    if train["method"] in METHODS:
        batches = pair_batches(rows, tokenizer, train, place)
    else:
        samples = tokenise(rows, tokenizer, method=train["method"], sequence_length=int(train["sequence_length"]))
        batches = Batches(samples, train, **place)
    samples = batches.samples
    steps = train.get("steps") or math.ceil(train["epochs"] * len(samples) / batches.global_batch_size)

    distributed = parallel_state.get_data_parallel_world_size(with_context_parallel=True) > 1
    model = build(base, train, layout)
    wrap(model, train, distributed_optimizer=distributed)
    optimizer = make_optimizer(model.chunks, train, distributed=distributed)
    data_hash = fingerprint(rows)
    checkpoints = Checkpoints(
        context.files.checkpoints(context.stage.name),
        model,
        optimizer,
        layout=layout.text(context.world_size),
        data=data_hash,
        keep=int(train["checkpoint"]["keep_last"]),
        save_optimizer=bool(train["checkpoint"].get("save_optimizer", True)),
    )
    objective: NextToken | Preference
    if isinstance(batches, PairBatches):
        file = context.files.reference(context.stage.name)
        objective = preference(model, batches, train, layout, base=base, data=data_hash, file=file)
    else:
        objective = NextToken(batches)
    progress = checkpoints.load() or Progress()
    if progress.step and context.is_main:
        context.event("resumed", step=progress.step)
    if context.is_main:
        context.event("metric", name="prepare_seconds", value=time.monotonic() - started)

    loop = Loop(context, model, optimizer, batches, objective, checkpoints, steps=int(steps))
    progress = loop.train_until_done(progress)

    artifact = context.files.artifact(context.stage.name)
    save_artifact(model, artifact, train, base=base)
    weights = sorted(base.glob("*.safetensors"))
    digests = process.hash_files(weights)
    process.leave()
    if context.is_main:
        context.finish(
            metrics={
                "steps": progress.step,
                "final_loss": progress.loss,
                "tokens": progress.tokens,
                "tokens_per_second": progress.tokens / progress.seconds,
                "seconds": progress.seconds,
                "samples": len(samples),
                "rows_left_out": len({row.id for row in rows}) - len({sample.id.split("#")[0] for sample in samples}),
            },
            artifacts={
                "path": str(artifact),
                "checkpoint": str(context.files.checkpoints(context.stage.name) / f"step-{progress.step:08d}"),
                "lineage": {
                    "base_weights": {path.name: digest for path, digest in zip(weights, digests, strict=True)},
                    "data_sha256": data_hash,
                    "versions": installed_versions(),
                },
            },
        )
