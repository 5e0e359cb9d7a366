from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.units import counted, parse_mib, parse_minutes, show_count, show_mib, show_seconds, slurm_time

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        (90, 90),
        ("90", 90),
        ("1h30m", 90),
        ("1h 30min", 90),
        ("2d", 2880),
        ("45s", 1),
        ("61s", 2),
        ("1-12:00:00", 2160),
        ("01:30:00", 90),
        ("30:00", 30),
        ("1-06:00", 1800),
        ("00:00:01", 1),
    ],
)
def test_durations(text: str | int, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "  ", "soon", "1h30", "-5", "0", 0, -3, True, "1.5h", "h", "1-12"])
def test_what_is_not_a_duration(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"not a duration|not longer than zero"):
        parse_minutes(text)


@given(st.integers(min_value=1, max_value=365 * 1440))
def test_slurm_time_is_read_back(minutes: int) -> None:
    assert parse_minutes(slurm_time(minutes)) == minutes


@pytest.mark.parametrize(("minutes", "text"), [(1, "0-00:01:00"), (90, "0-01:30:00"), (1440, "1-00:00:00")])
def test_slurm_time(minutes: int, text: str) -> None:
    assert slurm_time(minutes) == text


@pytest.mark.parametrize(
    ("text", "mib"),
    [(512, 512), ("512", 512), ("512M", 512), ("24G", 24576), ("1.5T", 1572864), ("2048k", 2), ("1 GiB", 1024)],
)
def test_sizes(text: str | int, mib: int) -> None:
    assert parse_mib(text) == mib


@pytest.mark.parametrize("text", ["", "G", "6 gigs", "-1", 0, True, "1k", "1e3"])
def test_what_is_not_a_size(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"not a size|less than one"):
        parse_mib(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12, "12 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


def test_sizes_and_counts_for_people() -> None:
    assert [show_mib(size) for size in (512, 1536, 1572864)] == ["512 MiB", "1.5 GiB", "1.5 TiB"]
    assert [show_count(n) for n in (512, 1234, 134_515_008, 70.6e9, 2.5e12)] == [
        "512",
        "1.2 k",
        "134.5 M",
        "70.6 B",
        "2.5 T",
    ]


def test_counted() -> None:
    assert [counted(number, "stage") for number in (0, 1, 2)] == ["0 stages", "1 stage", "2 stages"]
