"""Micro-batches through the model by Megatron-core's schedules, for training and for looking only."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from launcher.work.megatron.batches import Batch

# What a loss function returns on the last stage: the sum to differentiate, what it is to be divided by, and a report.
Loss = Callable[[Any, Any], tuple[Any, Any, Any]]


def forward_backward(
    chunks: Sequence[Any],
    micro: Callable[[], Iterator[Batch]],
    loss: Loss,
    *,
    count: int,
    sequences: int,
    length: int,
    labels: bool = True,
    forward_only: bool = False,
) -> list[Any]:
    """The reports of `count` micro-batches of `sequences` sequences, on the last pipeline stage; empty on others.

    `micro` gives the micro-batches anew for each chunk of the model. `loss` is called with a batch and what the
    model made of it: losses of its labels, [sequences, tokens], or its own outputs where `labels` is False.
    """
    from megatron.core.pipeline_parallel import get_forward_backward_func

    def step(iterator: Iterator[Batch], chunk: Any) -> tuple[Any, Any]:
        batch = next(iterator)
        out = chunk(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            attention_mask=None,
            labels=batch.labels if labels else None,
            packed_seq_params=batch.packed,
        )
        return out, functools.partial(loss, batch)

    iterators = [micro() for _ in chunks]
    with torch.set_grad_enabled(not forward_only):
        reports: list[Any] = get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=list(chunks) if len(chunks) > 1 else chunks[0],
            num_microbatches=count,
            seq_length=length,
            micro_batch_size=sequences,
            forward_only=forward_only,
        )
    return reports


def on_last_stage() -> bool:
    """Whether this rank holds the end of the model, where losses are."""
    groups = _groups()
    return groups is None or bool(groups.is_pipeline_last_stage(ignore_virtual=True))


def reports_alone() -> bool:
    """Whether this rank, of the tensor-parallel ones with the same losses, is the one whose reports count."""
    groups = _groups()
    return groups is None or (on_last_stage() and groups.get_tensor_model_parallel_rank() == 0)


def first_of_context() -> bool:
    """Whether this rank is the first of those that share its sequences: what they all know is counted once."""
    groups = _groups()
    return groups is None or bool(groups.get_context_parallel_rank() == 0)


def over_context(values: Any) -> Any:
    """Sums of what each context-parallel rank found in its part of the sequences; the gradient goes to each whole.

    Megatron-core adds up the gradients of context-parallel ranks, so that each must see that of its own part alone.
    """
    groups = _groups()
    if groups is None or groups.get_context_parallel_world_size() == 1:
        return values
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

    return reduce_from_tensor_model_parallel_region(values, group=groups.get_context_parallel_group())


def _groups() -> Any:
    """Megatron-core's parallel groups; None in other engines, where each rank computes with the whole model."""
    return sys.modules.get("megatron.core.parallel_state")
