"""What a training of any engine tells: where it goes on from, and its result."""

from __future__ import annotations

from pathlib import Path

from launcher.work import ranks
from launcher.work.checkpoints import Checkpoints, Progress
from launcher.work.context import Context
from launcher.work.megatron.feed import Feed
from launcher.work.megatron.loop import Loop
from launcher.work.versions import installed_versions


def tell_start(context: Context, progress: Progress, checkpoints: Checkpoints, *, seconds: float) -> None:
    """That it begins, `seconds` after the worker did, and from which step and layout it goes on."""
    if not context.is_main:
        return
    if progress.step:
        context.event("resumed", step=progress.step)
        if checkpoints.loaded_from:
            print(f"resharded: from {checkpoints.loaded_from} to {checkpoints.layout}", flush=True)
            context.event("resharded", **{"from": checkpoints.loaded_from, "to": checkpoints.layout})
    context.event("metric", name="prepare_seconds", value=seconds)


def finish(context: Context, progress: Progress, loop: Loop, fed: Feed, artifact: Path) -> None:
    """Leave the process groups and write the result. Every rank calls it, when the artifact is written."""
    weights = sorted(Path(context.options["model"]["path"]).glob("*.safetensors"))
    digests = ranks.hash_files(weights)
    ranks.leave()
    if not context.is_main:
        return
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
