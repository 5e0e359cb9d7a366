"""The train stage on Megatron-core, from options to result."""

from __future__ import annotations

import time
from pathlib import Path

from launcher.topology import Layout
from launcher.work import ranks
from launcher.work.context import Context
from launcher.work.megatron import process
from launcher.work.models import training_tokenizer
from launcher.work.versions import installed_versions


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
    from launcher.work.megatron.preference import preference

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
        objective = preference(context, model, batches, layout, data=fed.data_sha256)
    else:
        noise = None
        if alpha := float(train.get("neftune_alpha", 0.0)):
            noise = Noise(alpha, seed=int(train["seed"]), context_ranks=layout.context)
            noise.attach(model.bare)
        objective = NextToken(batches, noise)
    progress = checkpoints.load()
    if progress is None:
        begin(model.bare, train)
        optimizer.reload_model_params()
        progress = Progress()
    if progress.step and context.is_main:
        context.event("resumed", step=progress.step)
        if checkpoints.loaded_from:
            print(f"resharded: from {checkpoints.loaded_from} to {checkpoints.layout}", flush=True)
            context.event("resharded", **{"from": checkpoints.loaded_from, "to": checkpoints.layout})
    if context.is_main:
        context.event("metric", name="prepare_seconds", value=time.monotonic() - started)

    loop = Loop(context, model, optimizer, batches, objective, checkpoints, steps=int(steps), validation=fed.validation)
    progress = loop.train_until_done(progress)

    artifact = context.files.artifact(context.stage.name)
    save_artifact(model, artifact, train, base=base)
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
