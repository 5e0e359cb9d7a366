"""How far a running stage is: counts, rate, time left and the losses so far, from the events that it writes."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from launcher.record import Event, read_events
from launcher.rundir import RunDir
from launcher.standing import StageStatus
from launcher.units import show_count, show_mib
from launcher.view.words import clock, sparkline

_MARKS = 30  # newest events that the rate is taken from


@dataclass(frozen=True)
class Course:
    """A stage's way so far. `seconds_per_unit` is None until two events of one attempt are there."""

    done: int
    total: int
    unit: str
    at: float  # Unix seconds of the newest event
    seconds_per_unit: float | None = None
    loss: float | None = None
    losses: tuple[float, ...] = ()
    tokens_per_second: float | None = None
    mfu: float | None = None
    memory_mib: float | None = None  # of the fullest GPU, or of the largest process

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.done / self.total) if self.total > 0 else 0.0

    def seconds_left(self, now: float) -> float | None:
        """Time to the last unit at the newest rate, or None while there is no rate or no known end."""
        if self.seconds_per_unit is None or not self.total:
            return None
        return max(0.0, self.seconds_per_unit * (self.total - self.done) - (now - self.at))

    def text(self, *, spark_width: int = 0) -> str:
        """In words: "34/60 steps  loss 1.234 ▇▅▃  1.2 k tok/s  41% MFU  61.2 GiB"."""
        words = [f"{self.done}/{self.total} {self.unit}" if self.total else f"{self.done} {self.unit}"]
        if self.loss is not None:
            spark = sparkline(list(self.losses), spark_width) if len(self.losses) > 1 else ""
            words.append(f"loss {self.loss:.3f}" + (f" {spark}" if spark else ""))
        if self.tokens_per_second is not None:
            words.append(f"{show_count(self.tokens_per_second)} tok/s")
        if self.mfu is not None:
            words.append(f"{self.mfu:.0%} MFU")
        if self.memory_mib is not None:
            words.append(show_mib(self.memory_mib))
        return "  ".join(words)

    def left_text(self) -> str:
        """The time left as a clock, "" where unknown."""
        left = self.seconds_left(time.time())
        return "" if left is None else clock(left)


@dataclass
class _Memory:
    losses: dict[int, float] = field(default_factory=dict)  # by step, so that steps done again count once
    marks: deque[tuple[int, float, int]] = field(default_factory=lambda: deque(maxlen=_MARKS))


class Courses:
    """Remembers what each stage of a run has reported, from one look at the run to the next."""

    def __init__(self, run_dir: Path) -> None:
        self._events = RunDir(run_dir).events
        self._stages: dict[str, _Memory] = {}

    def look(self, stage: StageStatus) -> Course | None:
        """The stage's course now; None for a stage that has reported nothing yet."""
        reported = [event for event in (stage.step, stage.progress) if event is not None]
        if not reported:
            return None
        memory = self._stages.get(stage.name)
        if memory is None:  # first look: what was written before we came counts too
            memory = self._stages[stage.name] = _Memory()
            for event in read_events(self._events, stage=stage.name):
                _remember(memory, event)
        for event in sorted(reported, key=_time):
            _remember(memory, event)
        newest = max(reported, key=_time)
        stepping = newest["kind"] == "step"
        ranks = stage.ranks or {}
        return Course(
            done=int(newest["step" if stepping else "done"]),
            total=int(newest["steps" if stepping else "total"]),
            unit="steps" if stepping else str(newest["unit"]),
            at=float(newest["time"]),
            seconds_per_unit=_rate(memory, newest),
            loss=newest.get("loss"),
            losses=tuple(loss for _, loss in sorted(memory.losses.items())),
            tokens_per_second=newest.get("tokens_per_second"),
            mfu=newest.get("mfu"),
            memory_mib=(ranks.get("reserved_mib") or ranks.get("resident_mib")) if stepping else None,
        )


def _time(event: Event) -> float:
    return float(event["time"])


def _remember(memory: _Memory, event: Event) -> None:
    if event["kind"] == "step":
        done = int(event["step"])
        if event.get("loss") is not None:
            memory.losses[done] = float(event["loss"])
    elif event["kind"] == "progress":
        done = int(event["done"])
    else:
        return
    mark = (int(event["attempt"]), float(event["time"]), done)
    if not memory.marks or mark > memory.marks[-1]:
        memory.marks.append(mark)


def _rate(memory: _Memory, newest: Event) -> float | None:
    """Seconds per unit over the newest marks of this attempt, as long as they count upwards."""
    marks = [mark for mark in memory.marks if mark[0] == newest["attempt"]]
    start = len(marks) - 1
    while start > 0 and marks[start - 1][2] < marks[start][2]:
        start -= 1
    if marks and marks[-1][2] > marks[start][2]:
        return (marks[-1][1] - marks[start][1]) / (marks[-1][2] - marks[start][2])
    return float(newest["seconds"]) if newest.get("seconds") else None
