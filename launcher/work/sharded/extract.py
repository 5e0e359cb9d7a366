"""The weights of any checkpoint of a sharded engine, as training would leave them at its end. One rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.work import ranks
from launcher.work.context import Context
from launcher.work.versions import installed_versions


def extract(context: Context, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Write the checkpoint's weights to `folder`: an adapter, or whole weights. Returns what a train stage's result is.

    Raises WorkerError for a checkpoint that does not verify.
    """
    train = context.options["train"]
    base = Path(context.options["model"]["path"])

    from launcher.work.sharded import process

    process.join(context, {**train, "fsdp": None})

    from launcher.work.checkpoints import verified
    from launcher.work.sharded import engines, pissa
    from launcher.work.sharded.artifact import write_artifact
    from launcher.work.sharded.model import build

    manifest, complaint = verified(checkpoint)
    if complaint:
        raise WorkerError(complaint, where=str(checkpoint), hint="export another step")
    model = build(base, {**train, "engine": "fsdp"})
    if train["tuner"] == "pissa":
        pissa.begin(model, checkpoint / pissa.FILE)
    write_artifact(model, engines.saved_weights(model, train, checkpoint), folder, train, base=base)
    weights = sorted(base.glob("*.safetensors"))
    lineage = {
        "base_weights": {path.name: digest for path, digest in zip(weights, ranks.hash_files(weights), strict=True)},
        "data_sha256": manifest["data"],
        "versions": installed_versions(),
    }
    ranks.leave()
    progress = manifest["progress"]
    return {
        "metrics": {"steps": progress["step"], "final_loss": progress["loss"]},
        "artifacts": {"path": str(folder), "lineage": lineage},
    }
