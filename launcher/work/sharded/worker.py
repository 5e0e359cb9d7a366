"""The train stage on a sharded engine, from options to result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from launcher.work import ranks
from launcher.work.context import Context
from launcher.work.models import training_tokenizer
from launcher.work.versions import installed_versions


def run(context: Context) -> None:
    """Train to the last step, leave the artifact, write the result."""
    started = time.monotonic()
    train = context.options["train"]
    base = Path(context.options["model"]["path"])

    from launcher.work.sharded import process

    process.join(context, train)

    from launcher.work.checkpoints import Progress
    from launcher.work.megatron.feed import feed
    from launcher.work.megatron.noise import Noise
    from launcher.work.megatron.objective import NextToken
    from launcher.work.megatron.pairs import PairBatches
    from launcher.work.sharded import engines, pissa
    from launcher.work.sharded.artifact import save_artifact
    from launcher.work.sharded.checkpoint import Checkpoints
    from launcher.work.sharded.loop import ShardedLoop
    from launcher.work.sharded.model import build
    from launcher.work.sharded.reference import preference

    place = {"replica": context.rank, "replicas": context.world_size, "context_rank": 0, "context_ranks": 1}
    fed = feed(context, training_tokenizer(context.options["model"]), place)
    batches = fed.batches
    steps = train.get("steps") or batches.steps(train["epochs"])

    with engines.loading(train, micro_batches=batches.micro_batches):
        model = build(base, train)
    model.config.pad_token_id = batches.padding  # a score is that of the last token which is not padding
    start = context.files.stage(context.stage.name) / pissa.FILE
    if train["tuner"] == "pissa":
        pissa.begin(model, start)
    engine = engines.start(model, train, micro_batches=batches.micro_batches)
    checkpoints = Checkpoints(
        context.files.checkpoints(context.stage.name),
        engine,
        train["checkpoint"],
        layout=engines.layout(train, context.world_size),
        data=fed.data_sha256,
        start=start,
    )
    objective: Any
    if isinstance(batches, PairBatches):
        objective = preference(context, engine, batches, data=fed.data_sha256)
    else:
        noise = None
        if alpha := float(train.get("neftune_alpha", 0.0)):
            noise = Noise(alpha, seed=int(train["seed"]), context_ranks=1)
            noise.attach_whole(model.get_input_embeddings())
        objective = NextToken(batches, noise)
    progress = checkpoints.load() or Progress()
    if progress.step and context.is_main:
        context.event("resumed", step=progress.step)
        if checkpoints.loaded_from:
            print(f"resharded: from {checkpoints.loaded_from} to {checkpoints.layout}", flush=True)
            context.event("resharded", **{"from": checkpoints.loaded_from, "to": checkpoints.layout})
    if context.is_main:
        context.event("metric", name="prepare_seconds", value=time.monotonic() - started)

    loop = ShardedLoop(context, engine, batches, objective, checkpoints, steps=int(steps), validation=fed.validation)
    progress = loop.train_until_done(progress)

    artifact = context.files.artifact(context.stage.name)
    save_artifact(engine, model, artifact, train, base=base)
    weights = sorted(base.glob("*.safetensors"))
    digests = ranks.hash_files(weights)
    ranks.leave()
    if context.is_main:
        context.finish(
            metrics={
                "steps": progress.step,
                "final_loss": progress.loss,
                "tokens": progress.tokens,
                "tokens_per_second": progress.tokens / progress.seconds,
                "seconds": progress.seconds,
                **loop.reports.figures(),
                **fed.figures,
            },
            artifacts={
                "path": str(artifact),
                "checkpoint": str(context.files.checkpoints(context.stage.name) / f"step-{progress.step:08d}"),
                "lineage": {
                    "base_weights": {path.name: digest for path, digest in zip(weights, digests, strict=True)},
                    "data_sha256": fed.data_sha256,
                    "versions": installed_versions(),
                },
            },
        )
