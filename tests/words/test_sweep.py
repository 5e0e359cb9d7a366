"""The record of a sweep: tasks as text, arrays of a size, ranking, names of points."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.record import write_json
from launcher.rundir import RunDir
from launcher.sweep import (
    ArrayJob,
    Point,
    Sweep,
    arranged,
    from_json,
    point_files,
    read_arrays,
    read_sweep,
    scores,
    split_point,
    sweep_above,
    task_text,
    tasks_of,
    write_arrays,
)

pytestmark = pytest.mark.unit


def points(count: int, start: int = 0) -> list[Point]:
    return [Point(number, 0, 0, {"train.seed": number}) for number in range(start, start + count)]


def sweep(count: int, **changes: Any) -> Sweep:
    given = {"metric": "evaluate.accuracy", "goal": "maximize", "concurrency": 4, **changes}
    return Sweep(arranged([points(count)], 1001), ("train", "evaluate"), (), **given)


@given(st.sets(st.integers(0, 300), min_size=1))
def test_tasks_as_sbatch_writes_them(tasks: set[int]) -> None:
    assert tasks_of(task_text(tasks)) == sorted(tasks)


def test_task_text() -> None:
    assert task_text([7, 0, 2, 1]) == "0-2,7"
    assert task_text(range(1000)) == "0-999"


@pytest.mark.parametrize(("largest", "sizes"), [(1001, [5, 3]), (5, [5, 3]), (4, [4, 1, 3]), (1, [1] * 8)])
def test_arrays_of_a_size(largest: int, sizes: list[int]) -> None:
    placed = arranged([points(5), points(3, start=5)], largest)
    assert [point.number for point in placed] == list(range(8))
    found = Sweep(placed, ("train",), (), "train.final_loss", "minimize", 1).arrays
    assert [len(array) for array in found] == sizes
    assert all([point.task for point in array] == list(range(len(array))) for array in found)
    assert len({(point.array, point.task) for point in placed}) == 8


def test_the_record_is_read_back(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    assert read_sweep(files) is None
    write_json(files.sweep, sweep(3).to_json())
    assert read_sweep(files) == sweep(3) == from_json(sweep(3).to_json())
    jobs = [ArrayJob("train", 0, (0, 1, 5), "12"), ArrayJob("train", 1, (0,))]
    write_arrays(files, jobs)
    assert read_arrays(files) == jobs


def test_a_point_knows_its_sweep(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    (point,) = sweep(1).points
    folder = point_files(files, point).root
    assert sweep_above(folder) is None
    write_json(files.sweep, sweep(1).to_json())
    above = sweep_above(folder)
    assert above is not None
    assert above.root == tmp_path
    assert sweep_above(tmp_path) is None


@pytest.mark.parametrize(("goal", "order"), [("maximize", [2, 0, 3, 1, 4, 5, 6]), ("minimize", [0, 3, 2, 1, 4, 5, 6])])
def test_ranking(tmp_path: Path, goal: str, order: list[int]) -> None:
    files, whole = RunDir(tmp_path), sweep(7, goal=goal)
    values: list[Any] = [0.25, None, 0.5, 0.25, math.nan, True, "x"]
    for point, value in zip(whole.points, values, strict=True):
        write_json(point_files(files, point).result("evaluate"), {"metrics": {"accuracy": value}})
    found = scores(files, whole)
    assert [score.point.number for score in found] == order
    assert [score.value for score in found if score.value is None] == [None] * 4


def test_a_point_without_a_result_has_no_value(tmp_path: Path) -> None:
    assert [score.value for score in scores(RunDir(tmp_path), sweep(2))] == [None, None]


@pytest.mark.parametrize(
    ("text", "found"),
    [("a-run/7", ("a-run", 7)), ("a-run", ("a-run", None)), ("latest/0", ("latest", 0)), ("a/b", ("a/b", None))],
)
def test_names_of_points(text: str, found: tuple[str, int | None]) -> None:
    assert split_point(text) == found
