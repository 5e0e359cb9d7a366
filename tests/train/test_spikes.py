"""Loss spikes: what is far above the usual is one, whatever the usual is; noise and the usual fall are none."""

from __future__ import annotations

import math
import random

import pytest

from launcher.work.spikes import LEAST, LOSS, NORM, Spikes, named, worst_first

pytestmark = pytest.mark.unit


def spikes_of(values: list[float], figure: str = LOSS, factor: float = 10.0, clip: float = 0.0) -> list[int]:
    looker = Spikes(factor, clip=clip)
    return [step for step, value in enumerate(values) if looker.look(figure, value)]


def noisy(count: int, mean: float, deviation: float, seed: int = 1) -> list[float]:
    source = random.Random(seed)
    return [abs(source.gauss(mean, deviation)) for _ in range(count)]


def test_a_loss_that_jumps_is_found_at_its_step() -> None:
    values = noisy(100, 2.0, 0.1)
    values[80] = 5.0
    assert spikes_of(values) == [80]
    assert spikes_of(values, factor=0.0) == []


def test_what_spike_tells() -> None:
    looker = Spikes(10.0)
    for _ in range(LEAST):
        assert looker.look(LOSS, 2.0) is None
    spike = looker.look(LOSS, 4.0)
    assert spike is not None
    assert (spike.value, spike.usual) == (4.0, 2.0)
    assert spike.limit == pytest.approx(2.0 + 10 * 0.05 * 2.0)  # a curve without noise has 5 % of itself as its spread
    assert spike.text == "the loss is 4 (usual 2, limit 3)"


@pytest.mark.parametrize("deviation", [0.0, 0.1, 0.5, 1.0])
def test_noise_is_no_spike(deviation: float) -> None:
    assert spikes_of(noisy(2000, 2.0, deviation)) == []


def test_the_fall_of_the_loss_is_no_spike_and_hides_none() -> None:
    falling = [0.5 + 10 * math.exp(-step / 20) for step in range(200)]
    assert spikes_of(falling) == []
    falling[150] = 9.0
    assert spikes_of(falling) == [150]


def test_nobody_knows_before_enough_steps() -> None:
    assert spikes_of([1.0] * (LEAST - 1) + [100.0]) == []
    assert spikes_of([1.0] * LEAST + [100.0]) == [LEAST]


def test_a_spike_that_lasts_is_told_once_and_the_next_one_again() -> None:
    values = [1.0] * 40 + [50.0] * 5 + [1.0] * 20 + [50.0]
    assert spikes_of(values) == [40, 65]


def test_small_losses_and_norms_that_clipping_lets_pass_are_none() -> None:
    assert spikes_of([1e-6] * 40 + [0.05]) == []
    assert spikes_of([1e-3] * 40 + [0.9], NORM, clip=1.0) == []
    assert spikes_of([1e-3] * 40 + [1.1], NORM, clip=1.0) == [40]


def test_a_norm_may_be_several_times_the_usual() -> None:
    assert spikes_of([1.0] * 40 + [5.9], NORM) == []
    assert spikes_of([1.0] * 40 + [6.1], NORM) == [40]


def test_micro_batches_with_the_highest_loss_come_first() -> None:
    parts = [(["a", "b"], 4.0, 2.0), (["c"], 9.0, 1.0), (["d"], 0.0, 0.0)]
    assert worst_first(parts) == ["c", "a", "b", "d"]
    halves = [(["a", "b"], 1.0, 1.0), (["c"], 3.0, 2.0), (["a", "b"], 9.0, 1.0)]  # of two context-parallel ranks
    assert worst_first(halves) == ["a", "b", "c"]


def test_of_losses_that_are_no_number_the_others_are_left_out() -> None:
    parts = [(["a"], 1.0, 1.0), (["b"], float("nan"), 1.0), (["c"], float("inf"), 1.0)]
    assert worst_first(parts) == ["b", "c"]


def test_many_samples_are_counted() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([str(number) for number in range(100)]).endswith("19 and 80 more")
