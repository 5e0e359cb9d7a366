"""Trains as several.py does and keeps what the model makes of some tokens, before and after: family_train.py PLAN...

Beside each plan: before.safetensors and after.safetensors, the logits of the tokens in MODEL.reference; for full tuning
also untrained/, the model as it is exported without a step. Runs in the train environment.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import several
import torch
from safetensors.torch import load_file, save_file

from launcher.work.megatron import artifact, model


def main(plans: list[str]) -> None:
    wrap, save = model.wrap, artifact.save_artifact
    turn = iter(Path(path).parent for path in plans)
    run = Path()

    def wrapped(built: Any, train: Any, *rest: Any, **options: Any) -> None:
        nonlocal run
        run = next(turn)
        keep_logits(built.adapted, run / "before.safetensors")
        if train["tuner"] == "full":
            save(built, run / "untrained", train, base=base_of(built))
        wrap(built, train, *rest, **options)

    def saved(built: Any, *rest: Any, **options: Any) -> None:
        save(built, *rest, **options)
        keep_logits(built.chunks, run / "after.safetensors")

    model.wrap, artifact.save_artifact = wrapped, saved
    several.main(plans)


def base_of(built: Any) -> Path:
    """The folder that the model was built from."""
    return Path(built.config.hf_config.name_or_path)


def keep_logits(chunks: list[Any], file: Path) -> None:
    """Write the logits, [sequences, tokens, vocabulary], on the one rank that has the model's end."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
    from megatron.core.utils import get_model_config

    from launcher.work.megatron.batches import Batch
    from launcher.work.megatron.forward import forward_backward, reports_alone

    folder = Path(get_model_config(chunks[0]).hf_config.name_or_path)
    tokens = load_file(folder.with_suffix(".reference"))["tokens"]
    nothing, places = torch.zeros_like(tokens[:1]), torch.arange(tokens.shape[1])[None]
    batches = [Batch([], sequence[None], nothing, nothing, places) for sequence in tokens]

    def look(_: Batch, out: Any) -> tuple[Any, Any, Any]:
        return out.sum(), torch.ones((), dtype=torch.int), gather_from_tensor_model_parallel_region(out)

    found = forward_backward(
        chunks,
        lambda: iter(batches),
        look,
        count=len(batches),
        sequences=1,
        length=tokens.shape[1],
        labels=False,
        forward_only=True,
    )
    if reports_alone() and parallel_state.get_data_parallel_rank() == 0:
        save_file({"logits": torch.cat(found)}, file)


if __name__ == "__main__":
    main(sys.argv[1:])
