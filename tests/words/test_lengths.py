"""Lengths summed up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.lengths import LengthCount, Lengths

pytestmark = pytest.mark.unit


def counted(lengths: list[int]) -> Lengths:
    count = LengthCount()
    for length in lengths:
        count.add(length)
    return count.result()


def test_buckets_and_percentiles() -> None:
    found = counted([1, 2, 3, 4, 5, 100])
    assert (found.smallest, found.largest, found.total) == (1, 100, 115)
    assert found.buckets == ((1, 1), (2, 1), (4, 2), (8, 1), (128, 1))
    assert found.percentiles == ((50, 3), (90, 100), (99, 100))


def test_nothing_counted_is_all_zero() -> None:
    assert counted([]) == Lengths(0, 0, 0, (), ())


@given(st.lists(st.integers(0, 300), min_size=1, max_size=60))
def test_so_many_percent_are_not_longer(lengths: list[int]) -> None:
    for percent, length in counted(lengths).percentiles:
        not_longer = sum(one <= length for one in lengths)
        shorter = sum(one < length for one in lengths)
        assert not_longer * 100 >= percent * len(lengths) > shorter * 100
