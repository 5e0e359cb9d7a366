"""Which tokens of a row of sequences each context-parallel rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def held_positions(ends: Sequence[int], rank: int, ranks: int) -> Any:
    """Positions in the row that one rank holds: of every sequence, chunks r and 2c-1-r of its 2c chunks.

    The first half of causal attention is cheap and the second dear; a piece of both balances the work. Sequences end
    before `ends`; their lengths are multiples of 2 * ranks.
    """
    parts = []
    start = 0
    for end in ends:
        chunk = (end - start) // (2 * ranks)
        for number in (rank, 2 * ranks - 1 - rank):
            parts.append(torch.arange(start + number * chunk, start + (number + 1) * chunk))
        start = end
    return torch.cat(parts)
