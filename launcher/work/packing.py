"""Packing: which samples share a row of a batch, so that few of its slots are padding. Standard library alone."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

WINDOW = 65_536  # samples that are packed together; bounds memory, and costs at most one open row a window


@dataclass(frozen=True)
class Packs:
    """Rows of samples. `members` are indices of samples, row after row; row n ends before `ends[n]`."""

    members: array[int]
    ends: array[int]
    capacity: int  # slots of a row
    tokens: int  # in all rows together

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> array[int]:
        return self.members[self.ends[number - 1] if number else 0 : self.ends[number]]

    @property
    def efficiency(self) -> float:
        """Share of the slots that hold a token, 0 to 1."""
        return self.tokens / (len(self) * self.capacity) if len(self) else 0.0


def pack(lengths: Sequence[int], capacity: int, *, seed: int) -> Packs:
    """Put samples of these lengths (1 to `capacity` slots) into rows: best-fit decreasing, a window at a time.

    Windows are cut from an order that the seed shuffles. Each sample, the longest first, goes into the fullest row
    that still has room for it, so any two rows of a window hold more than one row could. (Johnson 1973, "Near-optimal
    bin packing algorithms": at most 11/9 of the best possible number of rows, plus 4.)
    """
    shuffled = array("q", range(len(lengths)))
    random.Random(seed).shuffle(shuffled)  # noqa: S311 - an order, not a secret
    members, ends = array("q"), array("q")
    for start in range(0, len(shuffled), WINDOW):
        for row in _best_fit(shuffled[start : start + WINDOW], lengths, capacity):
            members.extend(row)
            ends.append(len(members))
    return Packs(members, ends, capacity, sum(lengths))


def _best_fit(indices: Sequence[int], lengths: Sequence[int], capacity: int) -> Iterator[list[int]]:
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # rows by the slots that are left in them
    rooms = 0  # bit n is set where by_room[n] has rows: finds the least room that is enough without a search
    for index in sorted(indices, key=lengths.__getitem__, reverse=True):
        length = lengths[index]
        enough = rooms >> length
        if enough:
            room = length + (enough & -enough).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, number = capacity, len(rows)
            rows.append([])
        rows[number].append(index)
        if left := room - length:
            by_room.setdefault(left, []).append(number)
            rooms |= 1 << left
    yield from rows
