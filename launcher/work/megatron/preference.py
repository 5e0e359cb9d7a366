"""What preference methods and reward models need beside the model: pairs, and an objective with its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.topology import Layout
from launcher.work.context import Context
from launcher.work.data import Problem
from launcher.work.megatron.model import Model, frozen
from launcher.work.megatron.objective import Preference
from launcher.work.megatron.pairs import SINGLE, PairBatches, tokenise_pairs
from launcher.work.megatron.reference import FROZEN_COPY, PRECOMPUTED, Reference

METHODS = ("dpo", "kto", "simpo", "orpo", "cpo", "rm")


def pair_batches(
    rows: Sequence[Problem], tokenizer: Any, train: Mapping[str, Any], place: Mapping[str, int]
) -> PairBatches:
    """Batches of the rows' pairs; `place` says which part of them is this rank's, as batches take it."""
    pairs = tokenise_pairs(
        rows,
        tokenizer,
        method=train["method"],
        sequence_length=int(train["sequence_length"]),
        seed=int(train["seed"]),
        padding=place["padding"],
    )
    return PairBatches(pairs, train, single=train["method"] in SINGLE, **place)


def preference(
    context: Context,
    model: Model,
    batches: PairBatches,
    layout: Layout,
    *,
    data: str,
) -> Preference:
    """The objective, its reference made ready; to be called before a checkpoint is loaded.

    `data` is the hash of the rows. Raises Requeue where a stop comes while the reference is looked at.
    """
    train = context.options["train"]
    base = Path(context.options["model"]["path"])
    settings: Mapping[str, Any] = train["preference"]
    kind = settings.get("reference") or ""
    copy = frozen(base, train, layout) if kind == FROZEN_COPY else ()
    reference = Reference(model, batches, kind=kind, copy=copy)
    if kind == PRECOMPUTED:
        file = context.files.reference(context.stage.name)
        reference.precompute(context, file, {"data": data, "pairs": len(batches.samples)})
    return Preference(train["method"], settings, batches, reference)
