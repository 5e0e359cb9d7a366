"""PiSSA: adapters that start as the principal part of the matrix they adapt, which stays out of the frozen rest.

Meng et al. 2024, "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models",
arXiv:2404.02948: with W = U S V^T and the r largest singular values, s B A = U_r S_r V_r^T is trained and
W - s B A stays. Here W itself stays as it is, and the layer has a second, frozen adapter with the factors at the start
and the opposite sign: W + s B A - s B_0 A_0 is the same matrix. So the reference of preference methods is the model
without adapters, checkpoints hold all that a resumed run needs, and an ordinary adapter of twice the rank, [B, -B_0]
and [A; A_0], is what training leaves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from launcher.work.megatron.adapted import NAME, START, AdaptedLinear


def begin(layers: Iterable[AdaptedLinear]) -> None:
    """Give each layer, whose matrix is loaded, its factors. Every rank calls it together.

    The ranks that hold the same layers share the work, and so have the same factors to the last bit.
    """
    for turn, layer in enumerate(layers):
        with torch.no_grad():
            for base, now, start in zip(layer.base_weights(), layer.factors(NAME), layer.factors(START), strict=True):
                found = _principal(layer, base.double(), turn)
                for parameters in (now, start):
                    for parameter, values in zip(parameters, found, strict=True):
                        parameter.copy_(values)


def _principal(layer: AdaptedLinear, base: Any, turn: int) -> tuple[Any, Any]:
    """(A, B) of this rank, in fp64, with s B A the part of the whole matrix with the largest singular values.

    `base` is [outputs, inputs] of this rank. The singular vectors of the side that every rank holds whole are the
    eigenvectors of W^T W (of W W^T, where the inputs are divided), a sum over the ranks; those of the other side
    follow from them on each rank. A singular vector is no less one with the opposite sign: its largest number is made
    positive.
    """
    matrix = base.T if layer.is_parallel_a else base  # rows may be divided, columns are whole
    squares = matrix.T @ matrix
    if layer.tp_size > 1:
        dist.all_reduce(squares, group=parallel_state.get_tensor_model_parallel_group())
    rank = layer.r[NAME]
    values, vectors = _largest(squares, min(rank, len(squares)), layer.is_expert, turn)
    lengths = values.clamp(min=0).sqrt()
    root = (lengths / layer.scaling[NAME]).sqrt()
    other = matrix @ vectors / (root * layer.scaling[NAME]).clamp(min=torch.finfo(root.dtype).tiny)
    pad = (0, rank - len(values))  # a matrix smaller than the rank
    whole = torch.nn.functional.pad(vectors * root, pad)
    divided = torch.nn.functional.pad(other, pad)
    return (divided.T, whole) if layer.is_parallel_a else (whole.T, divided)


def _largest(squares: Any, count: int, expert: bool, turn: int) -> tuple[Any, Any]:
    """The largest eigenvalues, [count], and their vectors, [size, count]; found by one rank for all that need them."""
    if expert:
        group = parallel_state.get_expert_data_parallel_group()
    else:
        group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    ranks = dist.get_process_group_ranks(group)
    source = ranks[turn % len(ranks)]
    found = torch.empty(len(squares) + 1, count, dtype=squares.dtype, device=squares.device)
    if dist.get_rank() == source:
        values, vectors = torch.linalg.eigh(squares)
        values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
        largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        found.copy_(torch.cat([values[None], vectors * largest.sign()]))
    dist.broadcast(found, src=source, group=group)
    return found[0], found[1:]
