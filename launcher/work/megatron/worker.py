"""The train stage on Megatron-core, from options to result."""

from __future__ import annotations

import time
from pathlib import Path

from launcher.topology import Layout
from launcher.work.context import Context
from launcher.work.megatron import process
from launcher.work.models import training_tokenizer


def run(context: Context) -> None:
    """Train to the last step, leave the artifact, write the result."""
    started = time.monotonic()
    train = context.options["train"]
    layout = Layout(**train["layout"])
    base = Path(context.options["model"]["path"])

    process.prepare()
    process.join(context, layout, seed=int(train["seed"]))

    from megatron.core import parallel_state

    from launcher.work.checkpoints import Progress
    from launcher.work.megatron.adapters import begin
    from launcher.work.megatron.artifact import save_artifact
    from launcher.work.megatron.checkpoint import Checkpoints
    from launcher.work.megatron.feed import feed
    from launcher.work.megatron.loop import Loop
    from launcher.work.megatron.model import build, wrap
    from launcher.work.megatron.noise import Noise
    from launcher.work.megatron.objective import NextToken, Preference
    from launcher.work.megatron.optimizer import divides_state, make_optimizer
    from launcher.work.megatron.pairs import PairBatches
    from launcher.work.megatron.preference import preference, references
    from launcher.work.megatron.validation import next_token
    from launcher.work.trained import finish, tell_start

    place = {
        "replica": parallel_state.get_data_parallel_rank(),
        "replicas": parallel_state.get_data_parallel_world_size(),
        "context_rank": parallel_state.get_context_parallel_rank(),
        "context_ranks": layout.context,
    }
    fed = feed(context, training_tokenizer(context.options["model"]), place, tensor_ranks=layout.tensor)
    batches = fed.batches
    steps = train.get("steps") or batches.steps(train["epochs"])

    distributed = divides_state(train, parallel_state.get_data_parallel_world_size(with_context_parallel=True))
    model = build(base, train, layout)
    wrap(model, train, distributed_optimizer=distributed)
    optimizer = make_optimizer(model.chunks, train, distributed=distributed)
    checkpoints = Checkpoints(
        context.files.checkpoints(context.stage.name),
        model,
        optimizer,
        train["checkpoint"],
        layout=layout.text(context.world_size),
        data=fed.data_sha256,
        seed=int(train["seed"]),
    )
    objective: NextToken | Preference
    if isinstance(batches, PairBatches):
        made = references(context, model, layout)
        objective, validation = preference(context, made, batches, data=fed.data_sha256, held_out=fed.held_out)
    else:
        noise = Noise.wanted(train, context_ranks=layout.context)
        if noise:
            noise.attach(model.bare)
        objective, validation = next_token(batches, fed.held_out, noise)
    progress = checkpoints.load()
    if progress is None:
        begin(model.bare, train)
        optimizer.reload_model_params()
        progress = Progress()
    tell_start(context, progress, checkpoints, seconds=time.monotonic() - started)

    loop = Loop(context, model, optimizer, batches, objective, checkpoints, steps=int(steps), validation=validation)
    progress = loop.train_until_done(progress)

    artifact = context.files.artifact(context.stage.name)
    save_artifact(model, artifact, train, base=base)
    finish(context, progress, loop, fed, artifact)
