"""Token batches: samples as tensors, in an order that depends on seed and step alone."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from launcher.work.megatron.sequences import held_positions
from launcher.work.packing import Packs
from launcher.work.ranks import device
from launcher.work.samples import SampleLike

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank, [sequences, tokens] each, padded to the sequence length.

    `ids` and `lengths`, in tokens, are of each sequence. Where one row holds many, `ends` are the slots of the whole
    row at which they end, and `packed` is what Megatron-core is told of them, its PackedSeqParams.
    """

    ids: list[str]
    tokens: Any
    labels: Any
    loss_mask: Any
    positions: Any
    packed: Any = field(default=None, kw_only=True)
    lengths: list[int] = field(default_factory=list, kw_only=True)
    ends: list[int] = field(default_factory=list, kw_only=True)


def order(count: int, *, seed: int, first: int, size: int) -> list[int]:
    """Indices of the samples at global positions first to first + size - 1; each epoch is shuffled anew."""
    found: list[int] = []
    position = first
    while len(found) < size:
        epoch, offset = divmod(position, count)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        part = torch.randperm(count, generator=generator)[offset : offset + size - len(found)].tolist()
        found += part
        position += len(part)
    return found


class Stream(Generic[Item]):
    """Items in the order of training, a global batch a step; it is the same for every data-parallel size."""

    def __init__(
        self,
        samples: Sequence[Item],
        train: Mapping[str, Any],
        *,
        padding: int,
        replica: int,
        replicas: int,
        context_rank: int,
        context_ranks: int,
    ) -> None:
        self.samples = samples
        self.seed = int(train["seed"])
        self.global_batch_size = int(train["global_batch_size"])
        self.micro_batch_size = int(train["micro_batch_size"])
        self.sequence_length = int(train["sequence_length"])
        self.padding = padding
        self.replica, self.replicas = replica, replicas
        self.context_rank, self.context_ranks = context_rank, context_ranks
        self._newest: tuple[int, list[Item]] = (-1, [])

    @property
    def micro_batches(self) -> int:
        """Micro-batches of each replica in a step."""
        return self.global_batch_size // (self.micro_batch_size * self.replicas)

    def steps(self, epochs: float) -> int:
        """Steps of so many passes over the samples."""
        return math.ceil(epochs * len(self.samples) / self.global_batch_size)

    def of_step(self, step: int) -> list[Item]:
        """The global batch of a step; steps count from 0. It is asked for several times in a step and made once."""
        if self._newest[0] != step:
            self._newest = (step, self._picked(step))
        return self._newest[1]

    def _picked(self, step: int) -> list[Item]:
        first = step * self.global_batch_size
        picked = order(len(self.samples), seed=self.seed, first=first, size=self.global_batch_size)
        return [self.samples[index] for index in picked]

    def micro(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of a step."""
        raise NotImplementedError

    def own(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """This rank's part of a global batch, a micro-batch at a time."""
        for number in range(self.micro_batches):
            first = (number * self.replicas + self.replica) * self.micro_batch_size
            yield items[first : first + self.micro_batch_size]

    def padded(self, sequences: Sequence[SampleLike]) -> Batch:
        """Sequences below each other, each padded to the sequence length."""
        length, count = self.sequence_length, len(sequences)
        rows = _Rows(count * length, self.padding)
        for row, sequence in enumerate(sequences):
            rows.put(sequence, at=row * length, slots=length)
        parts = [self._own_part(part.view(count, length), [length]) for part in rows.parts]
        return Batch([each.id for each in sequences], *parts, lengths=[each.length for each in sequences])

    def _own_part(self, whole: Any, ends: Sequence[int]) -> Any:
        """What this rank holds under context parallelism; every row is cut into sequences at `ends`."""
        if self.context_ranks > 1:
            whole = whole[:, held_positions(ends, self.context_rank, self.context_ranks)]
        return whole.to(device())


class Batches(Stream[SampleLike]):
    """One sample a row."""

    def lengths(self, step: int) -> list[int]:
        """Tokens of each sample of a global batch."""
        return [sample.length for sample in self.of_step(step)]

    def micro(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of a step."""
        for samples in self.own(self.of_step(step)):
            yield self.padded(samples)


@dataclass(frozen=True)
class PackedRow:
    """Samples that share a row."""

    samples: list[SampleLike]

    @property
    def id(self) -> str:
        return ", ".join(sample.id for sample in self.samples)

    @property
    def length(self) -> int:
        return sum(sample.length for sample in self.samples)


class PackedBatches(Stream[PackedRow]):
    """Rows of many samples, none of which sees another.

    A step takes global_batch_size packs of sequence_length tokens each. The packs of a micro-batch lie behind each
    other in one row, so that `sequence_length` is that of the row, and `micro_batch_size` is 1. Under context
    parallelism each sample is padded, since it is cut into 2 * context_ranks pieces: rows are longer, packs the same.
    """

    def __init__(
        self,
        samples: Sequence[SampleLike],
        lengths: array[int],
        packs: Packs,
        train: Mapping[str, Any],
        *,
        tensor_ranks: int,
        **place: int,
    ) -> None:
        super().__init__([], train, **place)
        self._stored, self._packs = samples, packs
        self._together = self.micro_batch_size
        self.global_batch_size //= self._together
        self.micro_batch_size = 1
        self._unit = 2 * self.context_ranks if self.context_ranks > 1 else 1
        capacity = packs.capacity
        if self._unit > 1:
            fullest = max(sum(self._slots(lengths[index]) for index in packs[number]) for number in range(len(packs)))
            whole = math.lcm(self._unit, self.context_ranks * tensor_ranks)
            capacity = math.ceil(max(fullest, capacity) / whole) * whole
        self.sequence_length = capacity * self._together

    def steps(self, epochs: float) -> int:
        return math.ceil(epochs * len(self._packs) / (self.global_batch_size * self._together))

    def lengths(self, step: int) -> list[int]:
        """Tokens of each sample of a global batch."""
        return [sample.length for row in self.of_step(step) for sample in row.samples]

    def _picked(self, step: int) -> list[PackedRow]:
        size = self.global_batch_size * self._together
        picked = order(len(self._packs), seed=self.seed, first=step * size, size=size)
        return [
            PackedRow(
                [self._stored[index] for number in picked[at : at + self._together] for index in self._packs[number]]
            )
            for at in range(0, size, self._together)
        ]

    def micro(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of a step, a row each."""
        for (row,) in self.own(self.of_step(step)):
            yield self._filled(row)

    def _filled(self, row: PackedRow) -> Batch:
        rows = _Rows(self.sequence_length, self.padding)
        ends: list[int] = []
        at = 0
        for sample in row.samples:
            slots = self._slots(sample.length)
            rows.put(sample, at=at, slots=slots)
            at += slots
            ends.append(at)
        if at < self.sequence_length:  # what is left is a sequence of its own, which does not count
            rows.number(at, self.sequence_length - at)
            ends.append(self.sequence_length)
        parts = [self._own_part(part.unsqueeze(0), ends) for part in rows.parts]
        lengths = [sample.length for sample in row.samples]
        return Batch([sample.id for sample in row.samples], *parts, packed=_bounds(ends), lengths=lengths, ends=ends)

    def _slots(self, length: int) -> int:
        return -(-length // self._unit) * self._unit


def _bounds(ends: Sequence[int]) -> Any:
    """Where the sequences of a row end, as Megatron-core's attention is told; None in engines that go by positions."""
    if "megatron.core" not in sys.modules:
        return None
    from megatron.core.packed_seq_params import PackedSeqParams

    starts = [0, *ends[:-1]]
    longest = max(end - start for start, end in zip(starts, ends, strict=True))
    bounds = torch.tensor([0, *ends], dtype=torch.int32).to(device())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


class _Rows:
    """Slots of a batch, one behind the other: tokens, labels, which of them count, and their positions."""

    def __init__(self, slots: int, padding: int) -> None:
        self.tokens = torch.full((slots,), padding, dtype=torch.long)
        self.labels = torch.full((slots,), padding, dtype=torch.long)
        self.mask = torch.zeros(slots, dtype=torch.float32)
        self.positions = torch.zeros(slots, dtype=torch.long)

    @property
    def parts(self) -> tuple[Any, Any, Any, Any]:
        return self.tokens, self.labels, self.mask, self.positions

    def put(self, sample: SampleLike, *, at: int, slots: int) -> None:
        """A sample into the slots from `at` on; those it does not need are padding."""
        tokens = torch.tensor(sample.tokens)
        end = at + len(tokens) - 1
        self.tokens[at:end] = tokens[:-1]
        self.labels[at:end] = tokens[1:]
        self.mask[at:end] = torch.tensor(sample.trained[1:], dtype=torch.float32)
        self.number(at, slots)

    def number(self, at: int, slots: int) -> None:
        self.positions[at : at + slots] = torch.arange(slots)
