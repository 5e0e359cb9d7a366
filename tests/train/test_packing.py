"""Packing: every sample in one row, no row too full, and as good as any-fit packing has to be."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.work import packing
from launcher.work.packing import pack

pytestmark = pytest.mark.unit

CAPACITY = 64
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=120)


@given(LENGTHS, st.integers(0, 5))
def test_every_sample_has_one_place_and_no_row_is_too_full(lengths: list[int], seed: int) -> None:
    packs = pack(lengths, CAPACITY, seed=seed)
    rows = [list(packs[number]) for number in range(len(packs))]
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= CAPACITY for row in rows)
    assert packs.tokens == sum(lengths)


@given(LENGTHS)
def test_no_two_rows_would_fit_into_one(lengths: list[int]) -> None:
    packs = pack(lengths, CAPACITY, seed=1)
    fill = sorted(sum(lengths[index] for index in packs[number]) for number in range(len(packs)))
    assert all(first + second > CAPACITY for first, second in pairwise(fill))


def test_the_seed_alone_decides_who_shares_a_row() -> None:
    lengths = [random.Random(3).randint(1, 30) for _ in range(200)]
    one, same, other = (pack(lengths, CAPACITY, seed=seed) for seed in (7, 7, 8))
    assert (one.members, one.ends) == (same.members, same.ends)
    assert {frozenset(one[n]) for n in range(len(one))} != {frozenset(other[n]) for n in range(len(other))}


def test_windows_bound_what_is_packed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW", 50)
    lengths = [random.Random(number).randint(1, 40) for number in range(1000)]
    packs = pack(lengths, CAPACITY, seed=0)
    assert sorted(packs.members) == list(range(1000))
    assert packs.efficiency > 0.9


def test_short_samples_fill_the_rows_of_long_ones() -> None:
    lengths = [60, 4, 50, 10, 4, 64]
    packs = pack(lengths, CAPACITY, seed=0)
    assert len(packs) == 3
    assert packs.efficiency == 1.0 * sum(lengths) / (3 * CAPACITY) == 1.0


def test_nothing_makes_no_rows() -> None:
    packs = pack([], CAPACITY, seed=0)
    assert (len(packs), packs.efficiency) == (0, 0.0)
