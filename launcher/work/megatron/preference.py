"""What preference methods and reward models need beside model and pairs: an objective with its reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from launcher.topology import Layout
from launcher.work.context import Context
from launcher.work.megatron.model import Model, frozen
from launcher.work.megatron.objective import Preference
from launcher.work.megatron.pairs import PairBatches
from launcher.work.megatron.reference import FROZEN_COPY, PRECOMPUTED, Reference
from launcher.work.megatron.validation import HeldOut, Validation


def references(context: Context, model: Model, layout: Layout) -> Callable[[PairBatches], Reference]:
    """What makes the reference of given batches."""
    train = context.options["train"]
    kind = train["preference"].get("reference") or ""
    copy = frozen(Path(context.options["model"]["path"]), train, layout) if kind == FROZEN_COPY else ()
    return partial(Reference, model, kind=kind, copy=copy)


def preference(
    context: Context,
    references: Callable[[PairBatches], Reference],
    batches: PairBatches,
    *,
    data: str,
    held_out: HeldOut | None,
) -> tuple[Preference, Validation | None]:
    """The objective, and that of what is held out, their references made ready; to be called before a checkpoint is
    loaded.

    `data` is the hash of the rows. Raises Requeue where a stop comes while a reference is looked at.
    """
    train, file = context.options["train"], context.files.reference(context.stage.name)

    def over(pairs: PairBatches, file: Path, data: str) -> Preference:
        reference = references(pairs)
        if reference.kind == PRECOMPUTED:
            reference.precompute(context, file, {"data": data, "pairs": len(pairs.samples)})
        return Preference(train["method"], train["preference"], pairs, reference)

    objective = over(batches, file, data)
    if held_out is None:
        return objective, None
    assert isinstance(held_out.batches, PairBatches)
    beside = file.with_stem(f"{file.stem}-held-out")
    return objective, Validation(held_out, over(held_out.batches, beside, held_out.data_sha256))
