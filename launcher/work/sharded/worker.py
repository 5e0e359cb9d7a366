"""The train stage on a sharded engine, from options to result."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from launcher.work.context import Context
from launcher.work.models import training_tokenizer


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
    from launcher.work.megatron.pairs import PairBatches
    from launcher.work.megatron.preference import preference
    from launcher.work.megatron.validation import next_token
    from launcher.work.sharded import engines, pissa
    from launcher.work.sharded.artifact import save_artifact
    from launcher.work.sharded.checkpoint import Checkpoints
    from launcher.work.sharded.loop import ShardedLoop
    from launcher.work.sharded.model import build
    from launcher.work.sharded.reference import references
    from launcher.work.trained import finish, tell_start

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
        made = references(context, engine, micro_batches=batches.micro_batches)
        objective, validation = preference(context, made, batches, data=fed.data_sha256, held_out=fed.held_out)
    else:
        noise = Noise.wanted(train, context_ranks=1)
        if noise:
            noise.attach_whole(model.get_input_embeddings())
        objective, validation = next_token(batches, fed.held_out, noise)
    progress = checkpoints.load() or Progress()
    tell_start(context, progress, checkpoints, seconds=time.monotonic() - started)

    loop = ShardedLoop(context, engine, batches, objective, checkpoints, steps=int(steps), validation=validation)
    progress = loop.train_until_done(progress)

    artifact = context.files.artifact(context.stage.name)
    save_artifact(engine, model, artifact, train, base=base)
    finish(context, progress, loop, fed, artifact)
