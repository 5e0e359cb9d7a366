"""Token batches: rows become tokens and a loss mask, in an order that depends on seed and step alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from launcher.errors import WorkerError
from launcher.work.data import Problem


@dataclass(frozen=True)
class Sample:
    """Tokens of one sequence; `trained[i]` says whether predicting token i counts in the loss."""

    id: str
    tokens: list[int]
    trained: list[bool]

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return len(self.tokens) - 1


Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank, [sequences, tokens] each, padded to the sequence length."""

    ids: list[str]
    tokens: Any
    labels: Any
    loss_mask: Any
    positions: Any


def tokenise(rows: Sequence[Problem], tokenizer: Any, *, method: str, sequence_length: int) -> list[Sample]:
    """Samples of at most `sequence_length` + 1 tokens (the last one is only a label).

    sft: the assistant's turns count in the loss; a row too long for its first answer token is left out.
    cpt: every token counts, and long rows are cut into several samples.
    Raises WorkerError when nothing is left to train on.
    """
    samples: list[Sample] = []
    for row in rows:
        tokens, trained = tokens_of(row, tokenizer)
        if method == "cpt":
            trained = [True] * len(tokens)
        pieces = range(0, max(1, len(tokens) - 1), sequence_length) if method == "cpt" else range(1)
        for number, start in enumerate(pieces):
            end = start + sequence_length + 1
            sample = Sample(f"{row.id}#{number}" if number else row.id, tokens[start:end], trained[start:end])
            if any(sample.trained[1:]):
                samples.append(sample)
    if not samples:
        raise WorkerError(
            f"none of {len(rows)} rows has a token to learn within {sequence_length} tokens",
            where="train.sequence_length",
            hint="raise sequence_length, or look at the data: swiftlaunch data",
        )
    return samples


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
    """Which samples make up each step, and which of them are this rank's; the same for every data-parallel size."""

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

    @property
    def micro_batches(self) -> int:
        """Micro-batches of each replica in a step."""
        return self.global_batch_size // (self.micro_batch_size * self.replicas)

    def of_step(self, step: int) -> list[Item]:
        """The global batch of a step; steps count from 0."""
        first = step * self.global_batch_size
        picked = order(len(self.samples), seed=self.seed, first=first, size=self.global_batch_size)
        return [self.samples[index] for index in picked]

    def own(self, whole: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """This rank's micro-batches of a global batch."""
        for number in range(self.micro_batches):
            first = (number * self.replicas + self.replica) * self.micro_batch_size
            yield whole[first : first + self.micro_batch_size]

    def padded(self, samples: Sequence[Sample]) -> Batch:
        """The sequences as tensors on the device, filled up to the sequence length."""
        shape = (len(samples), self.sequence_length)
        tokens = torch.full(shape, self.padding, dtype=torch.long)
        labels = torch.full(shape, self.padding, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.float32)
        for row, sample in enumerate(samples):
            length = len(sample.tokens) - 1
            tokens[row, :length] = torch.tensor(sample.tokens[:-1])
            labels[row, :length] = torch.tensor(sample.tokens[1:])
            mask[row, :length] = torch.tensor(sample.trained[1:], dtype=torch.float32)
        positions = torch.arange(self.sequence_length).expand(shape)
        parts = [self._own_part(part).to("cuda") for part in (tokens, labels, mask, positions)]
        return Batch([sample.id for sample in samples], *parts)

    def _own_part(self, whole: Any) -> Any:
        """Under context parallelism of size c: chunks r and 2c-1-r of the 2c chunks of every sequence."""
        if self.context_ranks == 1:
            return whole
        chunks = whole.chunk(2 * self.context_ranks, dim=1)
        return torch.cat([chunks[self.context_rank], chunks[-1 - self.context_rank]], dim=1)


class Batches(Stream[Sample]):
    """Micro-batches of single sequences."""

    def micro(self, step: int) -> Iterator[Batch]:
        """This rank's micro-batches of a step."""
        for samples in self.own(self.of_step(step)):
            yield self.padded(samples)


def tokens_of(row: Problem, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """The tokens of a row, and which of them its assistant wrote."""
    if not row.messages:
        tokens = [*tokenizer.encode(row.answer), tokenizer.eos_token_id]
        return tokens, [True] * len(tokens)
    if not tokenizer.chat_template:
        prompt = tokenizer.encode("\n".join(turn["content"] for turn in row.messages) + "\n")
        answer = [*tokenizer.encode(row.answer, add_special_tokens=False), tokenizer.eos_token_id]
        return prompt + answer, [False] * len(prompt) + [True] * len(answer)
    turns = row.conversation
    tokens = _templated(tokenizer, turns, prompt=False)
    trained = [False] * len(tokens)
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before = _templated(tokenizer, turns[:index], prompt=True)
        through = _templated(tokenizer, turns[: index + 1], prompt=False)
        if tokens[: len(through)] == through and through[: len(before)] == before:
            trained[len(before) : len(through)] = [True] * (len(through) - len(before))
        elif index == len(turns) - 1:
            raise WorkerError(
                f"the tokenizer's chat template writes the answer of row {row.id} differently from its prompt",
                where="model",
                hint="the generation prompt must begin the assistant's turn; use another template, or method cpt",
            )
        # else: templates that shorten earlier turns (reasoning models) leave those out of the loss
    return tokens, trained


def _templated(tokenizer: Any, turns: Sequence[Mapping[str, str]], *, prompt: bool) -> list[int]:
    encoded = tokenizer.apply_chat_template(list(turns), add_generation_prompt=prompt, return_dict=True)
    return list(encoded["input_ids"])
