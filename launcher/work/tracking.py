"""Where figures of training go besides the run's events: TensorBoard, Weights & Biases, MLflow.

A thread of the main rank writes them, so that no tracker holds training up, and none can end it: one that fails is
reported and left. The events are the truth: what a tracker lacks when an attempt begins or ends is taken from them, so
that every step is there once, whatever attempts were lost.
"""

from __future__ import annotations

import importlib.util
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from launcher.errors import WorkerError
from launcher.record import Event, read_events
from launcher.work.boards import FAILED, FINISHED, STOPPED, Board, MLflow, Point, TensorBoard, WeightsAndBiases
from launcher.work.context import Context, Requeue

TRACKERS: dict[str, Callable[[Context], Board]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
_CLOSE_SECONDS = {FINISHED: 120.0, FAILED: 20.0, STOPPED: 20.0}  # for what is left to write; a stop leaves two minutes
_ABOUT = ("time", "kind", "stage", "attempt", "rank", "group", "step", "steps")  # of an event: no figures
# event -> what the names of its figures begin with
_PREFIX = {"step": "train", "ranks": "ranks", "validation": "validation"}


def check(context: Context) -> None:
    """Raises WorkerError where this environment lacks a tracker that the recipe names. To be called first of all."""
    missing = [name for name in _wanted(context) if not importlib.util.find_spec(name)]
    if missing:
        raise WorkerError(
            f"the {context.stage.environment.role} environment has no {' and no '.join(missing)}",
            where=f"tracking.{missing[0]}",
            hint=f"install it there, or write {missing[0]} = false",
        )


class Tracking:
    """The trackers of one attempt, as a context: how it is left is how the run ends there. None on other ranks."""

    def __init__(self, context: Context, resumed: int) -> None:
        self._context, self._resumed = context, resumed
        self._trails = [_Trail(context, TRACKERS[name](context)) for name in _wanted(context) if context.is_main]
        self._points: queue.SimpleQueue[Point | None] = queue.SimpleQueue()
        self._outcome = FINISHED
        self._thread = threading.Thread(target=self._write, name="tracking", daemon=True)

    def __enter__(self) -> Tracking:
        if self._trails:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        if kind is not None:
            self._outcome = STOPPED if issubclass(kind, Requeue) else FAILED
        if not self._thread.is_alive():
            return
        self._points.put(None)
        self._thread.join(_CLOSE_SECONDS[self._outcome])
        if self._thread.is_alive():
            _warn("a tracker was not done in time; the run's events have what it lacks")

    def add(self, kind: str, step: int, figures: Mapping[str, Any]) -> None:
        """Figures of a step, as its event of that kind has them; what is no number is left out."""
        if self._trails:
            self._points.put(_point(kind, step, time.time(), figures))

    def _write(self) -> None:
        for trail in self._trails:
            trail.catch_up(self._earlier())
        while (point := self._points.get()) is not None:
            for trail in self._trails:
                trail.write(point)
                if self._points.empty():
                    trail.flush()
        for trail in self._trails:
            if trail.lost:  # once more
                trail.catch_up(self._earlier(and_now=True))
            trail.close(self._outcome)

    def _earlier(self, *, and_now: bool = False) -> Iterator[Point]:
        """What the events know of the steps up to where this attempt began, `and_now` of its own too, once each."""
        newest: dict[tuple[int, str], Event] = {}
        for event in read_events(self._context.files.events, stage=self._context.stage.name):
            own = event["attempt"] == self._context.attempt
            if event["kind"] in _PREFIX and (and_now if own else int(event["step"]) <= self._resumed):
                newest[int(event["step"]), event["kind"]] = event
        for (step, kind), event in sorted(newest.items(), key=lambda item: item[0][0]):
            yield _point(kind, step, float(event["time"]), event)


class _Trail:
    """One tracker, and how far it is. What it raises is told once, and then it is `lost`."""

    def __init__(self, context: Context, board: Board) -> None:
        self._context, self._board = context, board
        self._last = 0
        self.lost = False

    def catch_up(self, points: Iterator[Point]) -> None:
        """Begin, with the points that are missing there."""

        def work() -> None:
            self._last = self._board.open()
            self._context.event("tracking", tracker=self._board.name, place=self._board.place())
            for point in points:
                if point.step > self._last:
                    self._board.write(point)
            self._board.flush()

        self.lost = False
        self._try(work)

    def write(self, point: Point) -> None:
        if point.step > self._last:
            self._try(lambda: self._board.write(point))

    def flush(self) -> None:
        self._try(self._board.flush)

    def close(self, outcome: str) -> None:
        self._try(lambda: self._board.close(outcome))

    def _try(self, work: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            work()
        except Exception as error:  # whatever a tracker raises: training is worth more
            self.lost = True
            trouble = f"{type(error).__name__}: {error}"
            _warn(f"{self._board.name} is left out from here on: {trouble}")
            self._context.event("tracking", tracker=self._board.name, place="", trouble=trouble)


def _wanted(context: Context) -> list[str]:
    tracking = context.options.get("tracking") or {}
    return [name for name in TRACKERS if tracking.get(name)]


def _point(kind: str, step: int, when: float, figures: Mapping[str, Any]) -> Point:
    found = {
        f"{_PREFIX[kind]}/{name}": float(value)
        for name, value in figures.items()
        if name not in _ABOUT and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return Point(step, when, found)


def _warn(text: str) -> None:
    print(f"warning: tracking: {text}", file=sys.stderr, flush=True)
