"""Lengths of rows, summed up: how the check of data files and the training that follows describe data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

PERCENTS = (50, 90, 99)


@dataclass(frozen=True)
class Lengths:
    """Lengths of rows. A bucket (upper, count) counts the rows longer than half of `upper`, up to `upper`; of
    `percentiles` (percent, length) so many percent of the rows are not longer than `length`."""

    smallest: int
    largest: int
    total: int
    buckets: tuple[tuple[int, int], ...]
    percentiles: tuple[tuple[int, int], ...]


class LengthCount:
    """Counts lengths one by one; memory grows with the number of different ones alone."""

    def __init__(self) -> None:
        self.rows = 0
        self._of: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self.rows += 1
        self._of[length] += 1

    def result(self) -> Lengths:
        """All zero where nothing was counted."""
        ordered = sorted(self._of.items())
        buckets: Counter[int] = Counter()
        for length, count in ordered:
            buckets[1 << max(length - 1, 0).bit_length()] += count
        total = sum(length * count for length, count in ordered)
        found = tuple((percent, self._at(-(-self.rows * percent // 100), ordered)) for percent in PERCENTS)
        smallest, largest = (ordered[0][0], ordered[-1][0]) if ordered else (0, 0)
        return Lengths(smallest, largest, total, tuple(sorted(buckets.items())), found if ordered else ())

    def _at(self, rank: int, ordered: list[tuple[int, int]]) -> int:
        """The length of the row at that place, from 1, when all stand in order."""
        for length, count in ordered:
            rank -= count
            if rank <= 0:
                return length
        return 0
