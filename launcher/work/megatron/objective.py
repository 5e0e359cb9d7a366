"""What a method minimises, on this rank: from a micro-batch and what the model made of it to a loss and figures.

An objective returns the sum of its losses and the number that the sum over the whole global batch is divided by
(tokens, or pairs), so that neither the number of micro-batches nor the layout changes the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from launcher.work.megatron import losses
from launcher.work.megatron.batches import Batch, Batches, PackedBatches
from launcher.work.megatron.forward import first_of_context, over_context
from launcher.work.megatron.noise import Noise
from launcher.work.megatron.pairs import PairBatch, PairBatches
from launcher.work.megatron.reference import ADAPTER_OFF, FROZEN_COPY, Reference

WITH_REFERENCE = ("dpo", "kto")
MEAN_LOGS = ("simpo", "orpo")  # methods that look at log-probabilities per token


class NextToken:
    """Cross-entropy of the tokens that count (sft, cpt), divided by their number."""

    sequences = 1  # for each sample
    labels = True
    unit = "tokens"  # what losses are divided by the number of
    figures: tuple[str, ...] = ()

    def __init__(self, batches: Batches | PackedBatches, noise: Noise | None = None) -> None:
        self.batches = batches
        self.noise = noise

    def begin(self, step: int) -> Callable[[], Iterator[Batch]]:
        """Get ready for a step; what gives its micro-batches."""
        micro = partial(self.batches.micro, step)
        return partial(self.noise.watched, step, micro) if self.noise else micro

    def lengths(self, step: int) -> tuple[list[int], list[int]]:
        """Tokens of the sequences that a step trains on, and of those that it only looks at."""
        return self.batches.lengths(step), []

    def divisor(self, batch: Batch) -> Any:
        """What the loss of a micro-batch brings to the number that the global batch's is divided by."""
        return batch.loss_mask.sum()

    def loss(self, batch: Batch, out: Any) -> tuple[Any, Any, Any]:
        """The summed loss, the tokens that it is over, and [loss, tokens] for the report."""
        loss = (out.float() * batch.loss_mask).sum()
        tokens = batch.loss_mask.sum()
        return loss, tokens.to(torch.int), torch.stack([loss.detach(), tokens])


class Preference:
    """Methods that compare two answers (dpo, simpo, orpo, cpo, rm) or judge one (kto), divided by pairs or answers."""

    def __init__(self, method: str, settings: Mapping[str, Any], batches: PairBatches, reference: Reference) -> None:
        self.method = method
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.batches = batches
        self.reference = reference
        self.single = batches.single
        self.unit = "answers" if self.single else "pairs"
        self.sequences = 1 if self.single else 2
        self.labels = method != "rm"  # a reward model has scores for outputs
        self.sft_scale = 0.0  # the weight of one chosen token's loss
        logs = () if method == "rm" else ("logps/chosen", "logps/rejected")
        self.figures = ("rewards/chosen", "rewards/rejected", *logs, *(() if self.single else ("rewards/accuracies",)))

    def begin(self, step: int) -> Callable[[], Iterator[Batch]]:
        """Get ready for a step: the reference's log-probabilities; what gives its micro-batches."""
        pairs = self.batches.of_step(step)
        self.reference.begin(pairs)
        tokens = sum(sum(self._sft_tokens(pair.first.trained)) for pair in pairs)
        self.sft_scale = float(self.settings.get("sft_weight", 0.0)) * len(pairs) / max(1, tokens)
        return partial(self.batches.micro, step)

    def lengths(self, step: int) -> tuple[list[int], list[int]]:
        """Tokens of the sequences that a step trains on, and of those that the reference or KTO only look at."""
        pairs = self.batches.of_step(step)
        first, second = [pair.first.length for pair in pairs], [pair.second.length for pair in pairs]
        referred = first + second if self.reference.kind in (ADAPTER_OFF, FROZEN_COPY) else []
        return (first, referred + second) if self.single else (first + second, referred)

    def divisor(self, batch: PairBatch) -> Any:
        """What the loss of a micro-batch brings to the number that the global batch's is divided by."""
        return torch.tensor(float(len(batch.indices)), device=batch.tokens.device)

    def loss(self, batch: Batch, out: Any) -> tuple[Any, Any, Any]:
        """The summed loss, the pairs that it is over, and [loss, pairs, sums of figures, counts of figures]."""
        assert isinstance(batch, PairBatch)
        if self.method == "rm":
            values = over_context((out.float().squeeze(-1) * batch.loss_mask).sum(dim=1))
        else:
            values = over_context(-(out.float() * batch.loss_mask).sum(dim=1))
        each, figures = self._judged(batch, values) if self.single else self._compared(batch, values)
        count = len(batch.indices)
        loss = each.sum()
        if self.sft_scale:
            mask = batch.text_mask if self.method == "orpo" else batch.loss_mask
            unlikely = over_context((out.float() * mask)[:count].sum(dim=1))
            loss = loss + self.sft_scale * unlikely.sum()
        told = torch.stack(
            [loss.detach(), torch.tensor(float(count), device=loss.device)]
            + [value.sum() for value, _ in figures]
            + [wanted.sum() for _, wanted in figures]
        )
        once = first_of_context()  # context-parallel ranks have the same loss
        return loss, torch.tensor(count * once, dtype=torch.int, device=loss.device), told * once

    def _compared(self, batch: PairBatch, values: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        """Losses of pairs, and figures: values and how often each counts."""
        settings = self.settings
        one = torch.ones(len(batch.indices), device=values.device)
        if self.method == "rm":
            chosen, rejected = values.chunk(2)
            each = losses.bradley_terry(
                chosen, rejected, margin=settings["margin"], center_weight=settings["center_weight"]
            )
            rewards, logs = values.detach(), ()
        else:
            base = self.reference.first_and_second(batch.indices, values) if self.method in WITH_REFERENCE else 0.0
            ratios = values - base
            mean = self.method in MEAN_LOGS or settings.get("length_normalization") or settings.get("loss") == "ipo"
            chosen, rejected = (ratios / batch.answers if mean else ratios).chunk(2)
            each = self._function()(chosen, rejected)
            rewards = settings["beta"] * (ratios / batch.answers if self.method in MEAN_LOGS else ratios).detach()
            logs = (values / batch.answers if self.method in MEAN_LOGS else values).detach().chunk(2)
        chosen, rejected = rewards.chunk(2)
        right = (chosen > rejected).float()
        return each, [(value, one) for value in (chosen, rejected, *logs, right)]

    def _judged(self, batch: PairBatch, values: Any) -> tuple[Any, list[tuple[Any, Any]]]:
        """Losses of single answers, and figures of the wanted and of the other ones."""
        settings, wanted = self.settings, batch.wanted
        ratios = values - self.reference.first(batch.indices, values)
        each = losses.kto(
            ratios,
            wanted,
            self.reference.kl,
            beta=settings["beta"],
            desirable_weight=settings["desirable_weight"],
            undesirable_weight=settings["undesirable_weight"],
        )
        yes, no = wanted.float(), 1 - wanted.float()
        rewards, logs = settings["beta"] * ratios.detach(), values.detach()
        return each, [(rewards * yes, yes), (rewards * no, no), (logs * yes, yes), (logs * no, no)]

    def _function(self) -> Callable[[Any, Any], Any]:
        settings = self.settings
        beta, smoothing = settings["beta"], settings.get("label_smoothing", 0.0)
        if self.method == "simpo":
            return partial(losses.simpo, beta=beta, gamma=settings["gamma"], label_smoothing=smoothing)
        if self.method == "orpo":
            return partial(losses.orpo, beta=beta)
        if self.method == "cpo":
            return partial(losses.cpo, beta=beta, label_smoothing=smoothing)
        if settings["loss"] == "ipo":
            return partial(losses.ipo, beta=beta)
        return partial(losses.dpo, beta=beta, label_smoothing=smoothing)

    def _sft_tokens(self, trained: list[bool]) -> list[bool]:
        """Tokens of the chosen text whose likelihood is trained too; ORPO's authors count the prompt's among them."""
        return [True] * (len(trained) - 1) if self.method == "orpo" else trained[1:]
