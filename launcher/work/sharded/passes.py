"""A micro-batch through a transformers model: what the objectives judge, in the form that Megatron-core gives it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from launcher.work.megatron.batches import Batch
from launcher.work.megatron.pairs import PairBatch


def outputs(module: Any, batch: Batch, *, scores: bool = False) -> Any:
    """Losses of the labels, [sequences, tokens] in fp32; or with `scores` each sequence's score, at every token.

    What lies behind the last token that counts is left out of the pass: attention looks back only. Positions start
    anew with each sequence of a packed row, by which transformers keeps them apart.
    """
    rows, length = batch.tokens.shape
    width = _width(batch)
    if scores:
        score = module(input_ids=batch.tokens[:, :width]).logits
        return score.float().view(rows, 1, 1).expand(rows, length, 1)
    found = module(input_ids=batch.tokens[:, :width], position_ids=batch.positions[:, :width])
    losses = functional.cross_entropy(
        found.logits.float().flatten(0, 1), batch.labels[:, :width].flatten(), reduction="none"
    )
    return functional.pad(losses.view(rows, width), (0, length - width))


def _width(batch: Batch) -> int:
    """Tokens of the longest row up to the last one that counts."""
    counts = batch.loss_mask + batch.text_mask if isinstance(batch, PairBatch) else batch.loss_mask
    used = counts.any(dim=0).nonzero()
    return int(used.max()) + 1 if len(used) else 1


@torch.no_grad()  # type: ignore[untyped-decorator]
def log_probabilities(module: Any, batch: PairBatch) -> list[float]:
    """Of the answers of a micro-batch's sequences, summed."""
    found: list[float] = (-(outputs(module, batch) * batch.loss_mask).sum(dim=1)).tolist()
    return found
