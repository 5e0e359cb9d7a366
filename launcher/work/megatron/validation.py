"""Rows that are not trained on, and how the model does on them while it is trained on others."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.work.corpus import tokenise
from launcher.work.data import fingerprint, stream
from launcher.work.megatron.batches import Batches, PackedBatches
from launcher.work.megatron.noise import Noise
from launcher.work.megatron.objective import NextToken, Preference
from launcher.work.megatron.pairs import METHODS, PairBatches, pair_batches


@dataclass(frozen=True)
class HeldOut:
    """The first rows of the evaluation data as whole global batches, the same in every layout and at every look.

    Fewer rows than a global batch has fill it by coming again. Rows are not packed.
    """

    batches: Batches | PairBatches
    every: int  # steps between two looks
    data_sha256: str

    @property
    def looks(self) -> int:
        """Global batches that one look is over."""
        return max(1, len(self.batches.samples) // self.batches.global_batch_size)

    @property
    def samples(self) -> int:
        """Those that a look is over."""
        return self.looks * self.batches.global_batch_size

    def due(self, step: int, *, last: bool) -> bool:
        """Whether to look after this step (from 1), which is the run's `last` one or not."""
        return last or step % self.every == 0


@dataclass(frozen=True)
class Validation:
    """What is held out, and what is found of it."""

    held_out: HeldOut
    objective: NextToken | Preference


def held_out(
    options: Mapping[str, Any], tokenizer: Any, place: Mapping[str, int], *, tensor_ranks: int
) -> HeldOut | None:
    """What [train.validation] asks for: pairs of answers, or rows. `place` is this rank's part, as batches take it."""
    train = options["train"]
    settings: Mapping[str, Any] | None = train.get("validation")
    if not settings:
        return None
    paired = train["method"] in METHODS
    rows = list(itertools.islice(stream(options["data"], "evaluation", verdicts=paired), int(settings["limit"])))
    batches: Batches | PairBatches
    if paired:
        batches = pair_batches(rows, tokenizer, train, place, of="evaluation")
    else:
        length = int(train["sequence_length"])
        batches = Batches(tokenise(rows, tokenizer, method=train["method"], sequence_length=length), train, **place)
        pieces = place["context_ranks"] * tensor_ranks  # packed training allows lengths that these do not divide
        whole = math.lcm(pieces, 2 * place["context_ranks"]) if place["context_ranks"] > 1 else pieces
        batches.sequence_length = math.ceil(length / whole) * whole
    found = HeldOut(batches, int(settings["every_steps"]), fingerprint(rows))
    batches.samples = batches.samples[: found.samples]
    return found


def next_token(
    batches: Batches | PackedBatches, held: HeldOut | None, noise: Noise | None
) -> tuple[NextToken, Validation | None]:
    """The objective of sft and cpt, and that of what is held out, which knows no noise."""
    objective = NextToken(batches, noise)
    if held is None:
        return objective, None
    assert isinstance(held.batches, Batches)
    return objective, Validation(held, NextToken(held.batches))
