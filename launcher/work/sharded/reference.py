"""The reference of preference methods, looked at with a sharded engine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from launcher.work.context import Context
from launcher.work.megatron.pairs import Pair, PairBatches
from launcher.work.megatron.reference import FROZEN_COPY, Reference
from launcher.work.sharded.engines import Engine, loading
from launcher.work.sharded.model import frozen
from launcher.work.sharded.passes import log_probabilities


class ShardedReference(Reference):
    """Three ways to the model that training starts from, as in the Megatron engine."""

    def __init__(self, engine: Engine, batches: PairBatches, *, kind: str, copy: Any) -> None:
        self.engine = engine
        self.chunks = engine.module
        model: Any = self
        super().__init__(model, batches, kind=kind, copy=copy)

    def _log_probabilities(
        self, chunks: Any, pairs: Sequence[Pair], *, first: bool = True
    ) -> dict[int, tuple[float, float]]:
        """Of this rank's pairs of a global batch, by index."""
        found: dict[int, tuple[float, float]] = {}
        for batch in self.batches.taken(pairs, first=first):
            with self.engine.computing():
                values = log_probabilities(chunks, batch)
            count = len(batch.indices)
            ones = values[:count] if first else [0.0] * count
            found.update(zip(batch.indices, zip(ones, values[-count:], strict=True), strict=True))
        return found

    def _without_adapters(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        stack.enter_context(self.chunks.disable_adapter())
        return stack


def references(context: Context, engine: Engine, *, micro_batches: int) -> Callable[[PairBatches], Reference]:
    """What makes the reference of given batches."""
    train: Mapping[str, Any] = context.options["train"]
    kind = train["preference"].get("reference") or ""
    copy = None
    if kind == FROZEN_COPY:
        with loading(train, micro_batches=micro_batches):
            model = frozen(Path(context.options["model"]["path"]), train)
        copy = engine.frozen(model)
    return partial(ShardedReference, engine, kind=kind, copy=copy)
