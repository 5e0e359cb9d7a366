"""Rows that are not trained on, and how well the model predicts them while it is trained on others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from launcher.work.corpus import tokenise
from launcher.work.data import stream
from launcher.work.megatron.batches import Batches
from launcher.work.megatron.objective import NextToken


class Validation:
    """The first rows of the evaluation data as whole global batches, the same in every layout and at every look.

    Fewer rows than a global batch has fill it by coming again. Rows are not packed.
    """

    def __init__(self, options: Mapping[str, Any], tokenizer: Any, place: Mapping[str, int], *, tensor_ranks: int = 1):
        train = options["train"]
        settings: Mapping[str, Any] = train["validation"]
        rows = list(itertools.islice(stream(options["data"], "evaluation"), int(settings["limit"])))
        length = int(train["sequence_length"])
        samples = tokenise(rows, tokenizer, method=train["method"], sequence_length=length)
        size = int(train["global_batch_size"])
        self.every = int(settings["every_steps"])
        self.looks = max(1, len(samples) // size)
        self.batches = Batches(samples[: self.looks * size], train, **place)
        pieces = place["context_ranks"] * tensor_ranks  # packed training allows lengths that these do not divide
        whole = math.lcm(pieces, 2 * place["context_ranks"]) if place["context_ranks"] > 1 else pieces
        self.batches.sequence_length = math.ceil(length / whole) * whole
        self.objective = NextToken(self.batches)

    @property
    def samples(self) -> int:
        """Those that a look is over."""
        return self.looks * self.batches.global_batch_size

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to look after this step (from 1), which is the run's `last` one or not."""
        return last or step % self.every == 0
