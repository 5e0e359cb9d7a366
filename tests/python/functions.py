"""What users' programs hand in."""

from __future__ import annotations

import os
import time
from pathlib import Path

import submitit


def add(left: int, right: int) -> int:
    print(f"adding {left} and {right}")
    return left + right


def third_fails(number: int) -> int:
    if number == 3:
        raise ValueError("three is not allowed")
    return number * 10


class SlowError(Exception):
    """Between its result and its end a rank that raises it takes its time."""

    def __str__(self) -> str:
        time.sleep(1)
        return "the last rank cannot"


def last_rank_fails_slowly() -> str:
    place = submitit.JobEnvironment()
    if place.global_rank == place.num_tasks - 1:
        raise SlowError
    return "done"


def wait(seconds: float) -> None:
    print("waiting")
    time.sleep(seconds)


def variables(*names: str) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in names}


def where_am_i() -> dict[str, object]:
    place = submitit.JobEnvironment()
    return {
        "cwd": os.getcwd(),
        "job_id": place.job_id,
        "rank": place.global_rank,
        "tasks": place.num_tasks,
        "site": os.environ.get("OF_THE_SITE"),
        "ours": os.environ.get("OURS"),
        "PYTHONPATH": os.environ.get("PYTHONPATH"),
    }


class Counter(submitit.helpers.Checkpointable):
    """Remembers what it had when it was started, each time; goes on until `stop` exists."""

    def __init__(self) -> None:
        self.history: list[str | None] = []
        self.value: str | None = None

    def __call__(self, stop: str) -> list[str | None]:
        self.history.append(self.value)
        self.value = str(len(self.history))
        print("counting", self.history)
        try:
            while not Path(stop).exists():
                time.sleep(0.05)
        except Exception:  # what leaves the function is none
            return ["caught"]
        return self.history
