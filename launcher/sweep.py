"""The record of a sweep: its points, who does which stage, the job arrays, and how points are ranked.

A sweep is one run. Its stages are of four kinds: what is the same for all points is done once, in the run's own
folder; what differs is done by each point in a folder of its own, as a task of a job array; `select` chooses the best
point; and what comes after the choice is done once, in the best point's folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.record import read_json, write_json
from launcher.rundir import RunDir

SELECT = "select"  # the stage that chooses the best point

# Metrics in the result.json of each worker that say how good a point is; others are counts and names.
METRICS = {
    "evaluate": ("accuracy", "mean_score", "perplexity", "seconds"),
    "train": ("final_loss", "validation_loss", "validation_accuracy", "tokens_per_second", "seconds"),
    "export": ("size_mib", "seconds"),
    "quantize": ("size_mib_after", "seconds"),
    "serve": ("seconds_to_listen", "seconds_to_answer", "seconds"),
}


@dataclass(frozen=True)
class Point:
    """One point. `array` is its folder below points/, `task` its SLURM_ARRAY_TASK_ID there; `values` by TOML path."""

    number: int
    array: int
    task: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep as it was planned. Stages that are in neither list are done once in the run's own folder."""

    points: tuple[Point, ...]
    each: tuple[str, ...]  # stages of every point
    best: tuple[str, ...]  # stages of the best point alone, after `select`
    metric: str  # "evaluate.accuracy"
    goal: str  # maximize or minimize
    concurrency: int

    @property
    def arrays(self) -> list[list[Point]]:
        """The points of each array, in the order of their tasks."""
        found: dict[int, list[Point]] = {}
        for point in self.points:
            found.setdefault(point.array, []).append(point)
        return [found[array] for array in sorted(found)]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return asdict(self)


@dataclass(frozen=True)
class ArrayJob:
    """One submission of a stage of some points. `job_id` is empty while nobody knows whether there is such a job."""

    stage: str
    array: int
    tasks: tuple[int, ...]
    job_id: str = ""

    @property
    def name(self) -> str:
        """What stands in the place of the stage's name in the job's comment."""
        return array_name(self.stage, self.array)


@dataclass(frozen=True)
class Score:
    """How good a point is; None where its metric is not there (yet), or is no finite number."""

    point: Point
    value: float | None


def array_name(stage: str, array: int) -> str:
    """What an array of a stage is called: the name of its script, and of its jobs."""
    return f"{stage}.{array}"


def from_json(data: dict[str, Any]) -> Sweep:
    """The sweep that `to_json` gave."""
    points = tuple(Point(**point) for point in data["points"])
    return Sweep(**{**data, "points": points, "each": tuple(data["each"]), "best": tuple(data["best"])})


def read_sweep(files: RunDir) -> Sweep | None:
    """The sweep of a run, None for a run that is none."""
    data = read_json(files.sweep)
    return None if data is None else from_json(data)


def point_files(files: RunDir, point: Point) -> RunDir:
    """The files of one point of the sweep in `files`."""
    return RunDir(files.points(point.array) / str(point.task))


def sweep_above(folder: Path) -> RunDir | None:
    """The files of the sweep that has this folder as one of its points; None for a run that is no point."""
    above = RunDir(folder.parent.parent.parent)
    return above if folder.parent.parent.name == "points" and above.sweep.is_file() else None


def read_arrays(files: RunDir) -> list[ArrayJob]:
    """The arrays that were submitted, oldest first."""
    return [ArrayJob(**{**entry, "tasks": tuple(tasks_of(entry["tasks"]))}) for entry in read_json(files.arrays) or []]


def write_arrays(files: RunDir, jobs: Iterable[ArrayJob]) -> None:
    """Note the arrays that were submitted."""
    write_json(files.arrays, [{**asdict(job), "tasks": task_text(job.tasks)} for job in jobs])


def task_text(tasks: Iterable[int]) -> str:
    """As sbatch --array takes them: (0, 1, 2, 7) -> "0-2,7"."""
    ends: list[list[int]] = []
    for task in sorted(tasks):
        if ends and ends[-1][1] == task - 1:
            ends[-1][1] = task
        else:
            ends.append([task, task])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ends)


def tasks_of(text: str) -> list[int]:
    """ "0-2,7" -> [0, 1, 2, 7]."""
    tasks: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        tasks += range(int(low), int(high or low) + 1)
    return tasks


def arranged(groups: Sequence[Sequence[Point]], largest: int) -> tuple[Point, ...]:
    """The points of groups that share their scripts, with array and task given to each; by number.

    No array has more than `largest` points.
    """
    placed: list[Point] = []
    array = 0
    for group in groups:
        for start in range(0, len(group), largest):
            for task, point in enumerate(group[start : start + largest]):
                placed.append(replace(point, array=array, task=task))
            array += 1
    return tuple(sorted(placed, key=lambda point: point.number))


def scores(files: RunDir, sweep: Sweep) -> list[Score]:
    """Every point with its metric, the best first, those without one last; equal ones by number."""
    stage, _, name = sweep.metric.partition(".")
    found = [Score(point, _finite(read_json(point_files(files, point).result(stage)), name)) for point in sweep.points]
    sign = -1.0 if sweep.goal == "maximize" else 1.0
    return sorted(found, key=lambda s: (s.value is None, sign * (s.value or 0.0), s.point.number))


def _finite(result: Any, name: str) -> float | None:
    value = result.get("metrics", {}).get(name) if isinstance(result, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def split_point(text: str) -> tuple[str, int | None]:
    """ "RUN/7" -> ("RUN", 7): a run, and one of its points where one is named."""
    match = re.fullmatch(r"(.+)/(\d+)", text)
    return (match[1], int(match[2])) if match else (text, None)
