"""Micro-batches through the model by Megatron-core's schedules, for training and for looking only."""

from __future__ import annotations

import functools
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
    from megatron.core import parallel_state

    return bool(parallel_state.is_pipeline_last_stage(ignore_virtual=True))


def reports_alone() -> bool:
    """Whether this rank, of the tensor-parallel ones with the same losses, is the one whose reports count."""
    from megatron.core import parallel_state

    return on_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0


def first_of_context() -> bool:
    """Whether this rank is the first of those that share its sequences: what they all know is counted once."""
    from megatron.core import parallel_state

    return bool(parallel_state.get_context_parallel_rank() == 0)


def over_context(values: Any) -> Any:
    """Sums of what each context-parallel rank found in its part of the sequences; the gradient goes to each whole.

    Megatron-core adds up the gradients of context-parallel ranks, so that each must see that of its own part alone.
    """
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.mappings import reduce_from_tensor_model_parallel_region

    if parallel_state.get_context_parallel_world_size() == 1:
        return values
    return reduce_from_tensor_model_parallel_region(values, group=parallel_state.get_context_parallel_group())
