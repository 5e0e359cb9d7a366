"""Log-probabilities of answers under the model that training starts from, and KTO's distance from it.

Three ways to that model: the trained one with its adapters off; a frozen copy beside it; or one pass over all data
before training, kept in a file. All three look at a step's pairs in a pass of their own, so that pipelines and
interleaved schedules run as they do in training.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.record import read_json, write_json
from launcher.work.context import Context, Requeue
from launcher.work.megatron.forward import (
    first_of_context,
    forward_backward,
    on_last_stage,
    over_context,
    reports_alone,
)
from launcher.work.megatron.model import Model
from launcher.work.megatron.pairs import Pair, PairBatch, PairBatches
from launcher.work.ranks import device

ADAPTER_OFF, FROZEN_COPY, PRECOMPUTED = "adapter-off", "frozen-copy", "precomputed"


class Reference:
    """What a method reads of the reference; methods without one never ask. Every rank calls `begin` together."""

    def __init__(self, model: Model, batches: PairBatches, *, kind: str, copy: Sequence[Any] = ()) -> None:
        self.model, self.batches = model, batches
        self.kind = kind
        self.copy = copy  # the frozen copy's chunks
        self.kl: Any = torch.zeros(())  # KTO's reference point of this step
        self._known: dict[int, tuple[float, float]] = {}  # by the pair's index

    def precompute(self, context: Context, file: Path, facts: Mapping[str, Any]) -> None:
        """Read the log-probabilities from `file`, or find them and write it; facts say what they are of.

        To be called before a checkpoint is loaded, while the model is the one that training starts from. Raises
        Requeue after a stop, with what was found so far in the file.
        """
        pairs, size = self.batches.samples, self.batches.global_batch_size
        known = _kept(file, facts)
        missing = len(known) < len(pairs)
        stopped = False
        while len(known) < len(pairs) and not stopped:
            start = len(known)
            # batches are full, as in training: the last one goes on with the first pairs, which are not new
            part = [pairs[index % len(pairs)] for index in range(start, start + size)]
            found = torch.zeros(min(size, len(pairs) - start), 2, dtype=torch.float64)
            for index, values in self._log_probabilities(self.model.chunks, part).items():
                if start <= index and reports_alone() and first_of_context():
                    found[index - start] = torch.tensor(values, dtype=torch.float64)
            stop = torch.tensor([float(context.stop_requested)], dtype=torch.float64)
            together = torch.cat([found.flatten(), stop]).to(device())
            dist.all_reduce(together)
            *values, stops = together.tolist()
            known += zip(values[::2], values[1::2], strict=True)
            stopped = bool(stops)
            if context.is_main:
                context.progress(len(known), len(pairs), "pairs")
            else:
                context.watchdog.beat(len(known), len(pairs))
        if missing:
            if dist.get_rank() == 0:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, {"facts": dict(facts), "log_probabilities": known})
                context.saved()
            dist.barrier()
        if len(known) < len(pairs):
            raise Requeue(f"stopped after {len(known)} of {len(pairs)} pairs of the reference")
        self._known = dict(enumerate(known))

    def begin(self, pairs: Sequence[Pair]) -> None:
        """Get ready for a step of these pairs."""
        if self.kind == ADAPTER_OFF:
            with self._without_adapters():
                self._known = self._log_probabilities(self.model.chunks, pairs)
        elif self.kind == FROZEN_COPY:
            self._known = self._log_probabilities(self.copy, pairs)
        if self.batches.single:
            self.kl = self._distance(pairs)

    def first(self, indices: Sequence[int], like: Any) -> Any:
        """Of the pairs' first sequences."""
        return torch.tensor([self._known[index][0] for index in indices], dtype=like.dtype).to(like.device)

    def first_and_second(self, indices: Sequence[int], like: Any) -> Any:
        """Of all first sequences, then of all second ones, as batches hold them."""
        values = [self._known[index][part] for part in (0, 1) for index in indices]
        return torch.tensor(values, dtype=like.dtype).to(like.device)

    def _distance(self, pairs: Sequence[Pair]) -> Any:
        """Mean log p - log p_reference of answers to other prompts, over the global batch; not below 0."""
        total = torch.zeros(1, dtype=torch.float64)
        found = self._log_probabilities(self.model.chunks, pairs, first=False)
        if reports_alone() and first_of_context():
            own = [pair.index for part in self.batches.own(pairs) for pair in part]
            total += sum(found[index][1] - self._known[index][1] for index in own)
        total = total.to(device())
        dist.all_reduce(total)
        return (total[0] / len(pairs)).clamp(min=0).float()

    def _log_probabilities(
        self, chunks: Sequence[Any], pairs: Sequence[Pair], *, first: bool = True
    ) -> dict[int, tuple[float, float]]:
        """Of this rank's pairs of a global batch, by index; empty on ranks without the model's end."""

        def look(batch: PairBatch, out: Any) -> tuple[Any, Any, Any]:
            values = over_context(-(out.float() * batch.loss_mask).sum(dim=1))
            nothing = torch.zeros((), device=values.device)
            return nothing, nothing.to(torch.int), (batch.indices, values.tolist())

        reports = forward_backward(
            chunks,
            lambda: self.batches.taken(pairs, first=first),
            look,
            count=self.batches.micro_batches,
            sequences=self.batches.micro_batch_size * (2 if first else 1),
            length=self.batches.sequence_length,
            forward_only=True,
        )
        found: dict[int, tuple[float, float]] = {}
        for indices, values in reports if on_last_stage() else []:
            ones = values[: len(indices)] if first else [0.0] * len(indices)
            found.update(zip(indices, zip(ones, values[-len(indices) :], strict=True), strict=True))
        return found

    def _without_adapters(self) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for chunk in self.model.adapted:
            stack.enter_context(chunk.disable_adapter())
        return stack


def _kept(file: Path, facts: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The first pairs' log-probabilities from the file, if it is of these facts. The same on every rank."""
    kept: list[Any] = [None]
    if dist.get_rank() == 0:
        found = read_json(file)
        kept = [found["log_probabilities"] if found and found["facts"] == dict(facts) else []]
    dist.broadcast_object_list(kept, src=0)
    return [(one, two) for one, two in kept[0]]
