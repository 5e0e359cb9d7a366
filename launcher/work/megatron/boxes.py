"""Ranges of a tensor's elements as boxes: what is contiguous in memory, in the terms of sharded checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence


def boxes(shape: Sequence[int], start: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offset and shape of the boxes that hold elements `start` to `end` of a tensor, counted row by row."""
    if start >= end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = math.prod(shape[1:])
    first, cut = divmod(start, row)
    if cut or end < (first + 1) * row:
        stop = min(end, (first + 1) * row)
        for offset, size in boxes(shape[1:], cut, stop - first * row):
            yield (first, *offset), (1, *size)
        first, start = first + 1, stop
    last, rest = divmod(end, row)
    if start < end and last > first:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if start < end and rest:
        for offset, size in boxes(shape[1:], 0, rest):
            yield (last, *offset), (1, *size)


def flat(offset: Sequence[int], shape: Sequence[int]) -> int:
    """Where the element at `offset` is among all, counted row by row."""
    place = 0
    for at, size in zip(offset, shape, strict=True):
        place = place * size + at
    return place
