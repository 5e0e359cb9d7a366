"""The weights of any checkpoint, whatever layout wrote it, as training would leave them at its end. One rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.topology import Layout
from launcher.work.context import Context
from launcher.work.megatron import process
from launcher.work.versions import installed_versions


def extract(context: Context, checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Write the checkpoint's weights to `folder`: an adapter, or whole weights. Returns what a train stage's result is.

    Raises WorkerError for a checkpoint that does not verify.
    """
    train = context.options["train"]
    base = Path(context.options["model"]["path"])
    process.prepare()
    process.join(context, Layout(), seed=int(train["seed"]))

    from megatron.core import dist_checkpointing

    from launcher.work.checkpoints import verified
    from launcher.work.megatron.artifact import save_artifact
    from launcher.work.megatron.checkpoint import set_weights, weights
    from launcher.work.megatron.model import build
    from launcher.work.ranks import hash_files, leave

    manifest, complaint = verified(checkpoint)
    if complaint:
        raise WorkerError(complaint, where=str(checkpoint), hint="export another step")
    model = build(base, train, Layout())
    set_weights(model, dist_checkpointing.load(weights(model), str(checkpoint)), checkpoint)
    save_artifact(model, folder, train, base=base)
    files = sorted(base.glob("*.safetensors"))
    lineage = {
        "base_weights": {path.name: digest for path, digest in zip(files, hash_files(files), strict=True)},
        "data_sha256": manifest["data"],
        "versions": installed_versions(),
    }
    leave()
    progress = manifest["progress"]
    return {
        "metrics": {"steps": progress["step"], "final_loss": progress["loss"]},
        "artifacts": {"path": str(folder), "lineage": lineage},
    }
