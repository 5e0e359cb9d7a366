"""Batches of preference methods: two sequences belong together and go through the model in one forward pass.

Of most methods the two are the chosen and the rejected answer to a prompt. Of KTO they are an answer with its verdict,
which is trained, and the same prompt with another row's answer, which measures how far the policy has moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from launcher.errors import WorkerError
from launcher.work.data import Problem
from launcher.work.megatron.batches import Batch, Stream, order
from launcher.work.ranks import device
from launcher.work.samples import Sample
from launcher.work.tokens import Encoded, encode

METHODS = ("dpo", "kto", "simpo", "orpo", "cpo", "rm")
SINGLE = ("kto",)  # methods that train the first sequence of a pair only


@dataclass(frozen=True)
class Pair:
    """Two sequences; `index` is the pair's place among all, `wanted` the verdict on the first (KTO)."""

    id: str
    index: int
    first: Sample
    second: Sample
    wanted: bool = True

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return self.first.length + self.second.length


@dataclass(frozen=True)
class PairBatch(Batch):
    """One micro-batch: the first sequences of all pairs, then the second ones (or one of the two kinds alone).

    `answers` holds the trained tokens of each sequence, counted over all context-parallel ranks; `text_mask` marks
    all tokens that are not padding.
    """

    indices: list[int]
    wanted: Any
    answers: Any
    text_mask: Any


def tokenise_pairs(
    rows: Sequence[Problem],
    tokenizer: Any,
    *,
    method: str,
    sequence_length: int,
    seed: int,
    padding: int,
    of: str = "train",
) -> list[Pair]:
    """The rows' pairs; a pair with an answer of which nothing is left within `sequence_length` is left out.

    `of` is the split that the rows are of. Raises WorkerError for rows of another kind than the method needs, and when
    nothing is left.
    """
    pairs: list[Pair] = []
    others = _others(rows, method, seed, of)
    firsts = encode(rows, tokenizer)
    seconds = encode((replace(row, answer=other) for row, other in zip(rows, others, strict=True)), tokenizer)
    for row, one, two in zip(rows, firsts, seconds, strict=True):
        first, second = (_sample(row.id, found, sequence_length) for found in (one, two))
        if not any(first.trained[1:]) or not any(second.trained[1:]):
            continue
        if method == "rm":
            first, second = (_scored(sample, sequence_length, padding) for sample in (first, second))
        pairs.append(Pair(row.id, len(pairs), first, second, row.wanted is not False))
    if not pairs:
        raise WorkerError(
            f"none of {len(rows)} rows has two answers that begin within {sequence_length} tokens",
            where="train.sequence_length",
            hint="raise sequence_length, or look at the data: swiftlaunch data",
        )
    return pairs


class PairBatches(Stream[Pair]):
    """Micro-batches of pairs; sizes count pairs. With `single` the first sequences alone are trained on."""

    def __init__(self, pairs: Sequence[Pair], train: Mapping[str, Any], *, single: bool, **place: int) -> None:
        super().__init__(pairs, train, **place)
        self.single = single

    def micro(self, step: int) -> Iterator[PairBatch]:
        return self.taken(self.of_step(step), second=not self.single)

    def taken(self, pairs: Sequence[Pair], *, first: bool = True, second: bool = True) -> Iterator[PairBatch]:
        """This rank's micro-batches of a global batch; of each pair both sequences, or one."""
        for own in self.own(pairs):
            sequences = [pair.first for pair in own] * first + [pair.second for pair in own] * second
            batch = self.padded(sequences)
            lengths = torch.tensor([[sample.length] for sample in sequences]).to(device())
            yield PairBatch(
                ids=[pair.id for pair in own],
                tokens=batch.tokens,
                labels=batch.labels,
                loss_mask=batch.loss_mask,
                positions=batch.positions,
                indices=[pair.index for pair in own],
                wanted=torch.tensor([pair.wanted for pair in own]).to(device()),
                answers=torch.tensor([float(sum(sample.trained[1:])) for sample in sequences]).to(device()),
                text_mask=(batch.positions < lengths).float(),
            )


def pair_batches(
    rows: Sequence[Problem], tokenizer: Any, train: Mapping[str, Any], place: Mapping[str, int], *, of: str = "train"
) -> PairBatches:
    """Batches of the rows' pairs; `place` says which part of them is this rank's, as batches take it."""
    pairs = tokenise_pairs(
        rows,
        tokenizer,
        method=train["method"],
        sequence_length=int(train["sequence_length"]),
        seed=int(train["seed"]),
        padding=place["padding"],
        of=of,
    )
    return PairBatches(pairs, train, single=train["method"] in SINGLE, **place)


def _others(rows: Sequence[Problem], method: str, seed: int, of: str) -> list[str]:
    """Each row's second answer. KTO: that of another row, the same in every epoch and layout."""
    if method not in SINGLE:
        missing = [row.id for row in rows if row.rejected is None]
        if missing:
            raise WorkerError(
                f"{method} learns from pairs of answers, and row {missing[0]} has one", where="data.format"
            )
        return [str(row.rejected) for row in rows]
    missing = [row.id for row in rows if row.wanted is None]
    if missing:
        raise WorkerError(f"{method} learns from verdicts, and row {missing[0]} has none", where="data.format")
    if len(rows) < 2:
        raise WorkerError("kto needs at least two rows", where=f"data.{of}")
    # a shuffled circle: neighbours in a file often answer the same prompt
    circle = order(len(rows), seed=seed, first=0, size=len(rows))
    before = dict(zip(circle, [circle[-1], *circle[:-1]], strict=True))
    return [rows[before[index]].answer for index in range(len(rows))]


def _sample(name: str, found: Encoded, sequence_length: int) -> Sample:
    """Prompt and answer; the answer alone counts, whatever the assistant said before."""
    tokens, trained = found.tokens, found.trained
    last = len(trained) - 1
    while last > 0 and not trained[last]:
        last -= 1
    start = last
    while start > 0 and trained[start - 1]:
        start -= 1
    trained = [start <= index <= last for index in range(len(tokens))]
    return Sample(name, tokens[: sequence_length + 1], trained[: sequence_length + 1])


def _scored(sample: Sample, sequence_length: int, padding: int) -> Sample:
    """For a reward model: all tokens are read, and what counts is what follows the last one that is not padding.

    The same place as transformers looks at: the last token other than the padding token.
    """
    tokens = sample.tokens[:sequence_length]
    last = max((index for index, token in enumerate(tokens) if token != padding), default=0)
    trained = [False, *(index == last for index in range(len(tokens)))]
    return Sample(sample.id, [*tokens, padding], trained)
