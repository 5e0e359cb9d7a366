"""The points of a sweep: combinations, draws, points that are equal, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import Fault, InputError
from launcher.recipe import LoadedRecipe, load_recipe
from launcher.recipe.points import points
from launcher.recipe.sections import Sweep

pytestmark = pytest.mark.unit

BASE = """\
name = "swept"
[model]
name = "smollm2-135m-instruct"
[data]
source = "reasoning-gym"
task = "chain_sum"
[train]
steps = 10
global_batch_size = 8
micro_batch_size = 4
sequence_length = 64
learning_rate = 1e-3
tuner = "lora"
[sweep]
metric = "train.final_loss"
"""


def loaded(folder: Path, sweep: str) -> LoadedRecipe:
    path = folder / "recipe.toml"
    path.write_text(BASE + sweep)
    return load_recipe(path)


def faults(folder: Path, sweep: str) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        loaded(folder, sweep)
    return list(caught.value.faults)


def values(folder: Path, sweep: str) -> list[dict[str, Any]]:
    return [point.values for point in loaded(folder, sweep).points]


def test_grid_is_every_combination_the_last_key_fastest(tmp_path: Path) -> None:
    found = values(tmp_path, 'parameters = { "train.seed" = [1, 2], "train.lora.rank" = [4, 8] }\n')
    assert [list(point.values()) for point in found] == [[1, 4], [1, 8], [2, 4], [2, 8]]


def test_list_takes_the_nth_of_each(tmp_path: Path) -> None:
    sweep = 'method = "list"\nparameters = { "train.seed" = [1, 2], "train.lora.rank" = [4, 8] }\n'
    assert [list(point.values()) for point in values(tmp_path, sweep)] == [[1, 4], [2, 8]]


def test_values_that_only_go_together(tmp_path: Path) -> None:
    """12 alone is no multiple of the recipe's micro-batch; what counts is the points."""
    sweep = 'parameters = { "train.global_batch_size" = [9, 6], "train.micro_batch_size" = [3] }\n'
    assert len(values(tmp_path, sweep)) == 2


def test_points_are_recipes_of_their_own(tmp_path: Path) -> None:
    whole = loaded(tmp_path, 'parameters = { "train.learning_rate" = [1e-4], "train.lora.rank" = [4] }\n')
    (point,) = whole.points
    assert point.recipe.sweep is None
    assert point.resolved["train"]["learning_rate"] == 1e-4
    assert whole.resolved["train"]["learning_rate"] == 1e-3
    assert point.where("train", "learning_rate").startswith(f"{tmp_path}/recipe.toml:16 ")


def test_paths_start_at_the_recipe(tmp_path: Path) -> None:
    whole = loaded(tmp_path, 'parameters."model.path" = ["a", "/b"]\n')
    assert [point.recipe.model.path for point in whole.points] == [str(tmp_path / "a"), "/b"]
    assert {point.recipe.model.name for point in whole.points} == {None}


def test_equal_points_are_left_out(tmp_path: Path) -> None:
    whole = loaded(tmp_path, 'parameters."train.learning_rate" = [0.1, 0.10, 0.2]\n')
    assert (len(whole.points), whole.equal_points) == (2, 1)


RANDOM = 'method = "random"\nsamples = 50\nseed = 7\n'
RATE = 'parameters."train.learning_rate" = { min = 1e-5, max = 1e-2, scale = "log" }\n'
RANK = 'parameters."train.lora.rank" = { min = 4, max = 64, scale = "log" }\n'


def test_draws_follow_from_the_seed_alone(tmp_path: Path) -> None:
    first = values(tmp_path, RANDOM + RATE)
    assert first == values(tmp_path, RANDOM + RATE)
    assert first != values(tmp_path, RANDOM.replace("7", "8") + RATE)
    both = values(tmp_path, RANDOM + RATE + RANK)
    assert [point["train.learning_rate"] for point in both] == [point["train.learning_rate"] for point in first]


def test_draws_of_a_logarithm_are_even_there(tmp_path: Path) -> None:
    found = values(tmp_path, RANDOM.replace("50", "400") + RATE)
    decades = [sum(low <= point["train.learning_rate"] < 10 * low for point in found) for low in (1e-5, 1e-4, 1e-3)]
    assert all(80 < count < 190 for count in decades), decades


def test_whole_numbers_stay_whole(tmp_path: Path) -> None:
    sweep = RANDOM + RANK + 'parameters."data.task_options.max_terms" = { min = 2, max = 5 }\n'
    found = values(tmp_path, sweep + 'parameters."train.weight_decay" = { min = 0, max = 1 }\n')
    assert {type(point["train.lora.rank"]) for point in found} == {int}
    assert {type(point["data.task_options.max_terms"]) for point in found} == {int}
    assert {type(point["train.weight_decay"]) for point in found} == {float}
    assert all(4 <= point["train.lora.rank"] <= 64 for point in found)
    assert {point["data.task_options.max_terms"] for point in found} == {2, 3, 4, 5}


@given(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3), st.sampled_from(["linear", "log"]), st.integers(0, 2**32 - 1))
def test_draws_stay_between_the_bounds(one: float, other: float, scale: str, seed: int) -> None:
    low, high = min(one, other), max(one, other) + 1e-3
    table = {"min": low, "max": high, "scale": scale}
    parameters = {"train.learning_rate": table, "train.seed": {"min": low, "max": high + 1, "scale": scale}}
    sweep = Sweep.model_validate({"method": "random", "samples": 20, "seed": seed, "parameters": parameters})
    for point in points(sweep):
        assert low <= point["train.learning_rate"] <= high
        assert low <= point["train.seed"] <= high + 1


def test_choices_are_drawn_too(tmp_path: Path) -> None:
    found = values(tmp_path, RANDOM + RATE + 'parameters."train.tuner" = ["lora", "rslora"]\n')
    assert {point["train.tuner"] for point in found} == {"lora", "rslora"}


def test_a_fault_of_one_value_is_told_once_at_that_value(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, 'parameters = { "train.steps" = [5, 0], "train.seed" = [1, 2, 3] }\n')
    assert fault.where.endswith(':16 sweep.parameters."train.steps"[1]')
    assert fault.message == "must be at least 1, not 0"


def test_a_fault_of_several_values_tells_the_point(tmp_path: Path) -> None:
    sweep = 'parameters = { "train.warmup_steps" = [0, 8], "train.steps" = [4, 9] }\n'
    (fault,) = faults(tmp_path, sweep)
    assert "warmup_steps" in fault.where
    assert "longer than steps = 4" in fault.message


def test_no_whole_number_to_draw(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, RANDOM + 'parameters."train.steps" = { min = 2.2, max = 2.8 }\n')
    assert "no whole number from 2.2 to 2.8" in fault.message


@pytest.mark.parametrize(
    "sweep",
    [
        'method = "random"\nsamples = 20000\n' + RATE,
        f'parameters = {{ "train.seed" = {list(range(200))}, "train.lora.rank" = {list(range(1, 61))} }}\n',
    ],
)
def test_too_many_points(tmp_path: Path, sweep: str) -> None:
    (fault,) = faults(tmp_path, sweep)
    assert "at most 10000" in fault.message
