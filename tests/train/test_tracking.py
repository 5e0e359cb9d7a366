"""What trackers get across attempts, with a tracker that keeps it in a list; the real ones are in test_trackers.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import WorkerError
from launcher.plan import Environment, Plan, Resources, Stage
from launcher.record import read_events
from launcher.work import tracking
from launcher.work.boards import FAILED, FINISHED, STOPPED, Point
from launcher.work.context import Context, Requeue, from_environment

pytestmark = pytest.mark.unit


class Kept:
    """Keeps its points between attempts, as a server would."""

    name = "kept"

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.ended: list[str] = []
        self.opened = 0
        self.breaks_at: int | None = None

    def open(self) -> int:
        self.opened += 1
        return max((point.step for point in self.points), default=0)

    def place(self) -> str:
        return "a list"

    def write(self, point: Point) -> None:
        if point.step == self.breaks_at:
            self.breaks_at = None
            raise ConnectionError("nobody answers")
        self.points.append(point)

    def flush(self) -> None:
        pass

    def close(self, outcome: str) -> None:
        self.ended.append(outcome)

    @property
    def steps(self) -> list[int]:
        return [point.step for point in self.points]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Context]:
    """Makes the context of an attempt whose recipe names the tracker "kept"."""
    stage = Stage(
        "train",
        "train",
        Resources(1, 1, 1, 0, 1024, 10),
        Environment("train", "venv", "python"),
        {"train": {}, "tracking": {"kept": True}},
    )
    plan = Plan(
        run_id="r", name="r", run_dir=str(tmp_path), site="local", scheduler="local", user="u", version="0",
        git_sha="", recipe_path="", recipe={}, model={}, data_hash="", stages=(stage,),
    )  # fmt: skip

    def make(number: int, board: Kept, rank: int = 0) -> Context:
        monkeypatch.setattr(tracking, "TRACKERS", {"kept": lambda context: board})
        return from_environment(plan, "train", {"SWIFTLAUNCH_ATTEMPT": str(number), "SLURM_PROCID": str(rank)})

    return make


def steps(context: Context, trail: tracking.Tracking, first: int, last: int) -> None:
    for step in range(first, last + 1):
        told = {"loss": 10.0 - step, "seconds": 1.0}
        context.event("step", step=step, steps=100, **told)
        trail.add("step", step, told)


def ends_with(error: Exception, context: Context, last: int) -> None:
    """An attempt from step 1 to `last` that ends so."""
    try:
        with tracking.Tracking(context, 0) as trail:
            steps(context, trail, 1, last)
            raise error
    except type(error):
        pass


def told(context: Context) -> list[dict[str, Any]]:
    return [event for event in read_events(context.files.events) if event["kind"] == "tracking"]


def test_a_resumed_run_has_every_step_once(attempt: Callable[..., Context]) -> None:
    board = Kept()
    first = attempt(1, board)
    ends_with(Requeue("told to stop"), first, 7)
    second = attempt(2, board)
    with tracking.Tracking(second, 5) as trail:  # steps 6 and 7 are done again
        steps(second, trail, 6, 9)
    assert board.steps == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert board.points[0].figures == {"train/loss": 9.0, "train/seconds": 1.0}
    assert board.ended == [STOPPED, FINISHED]
    assert [event["place"] for event in told(second)] == ["a list", "a list"]


def test_what_a_killed_attempt_kept_back_comes_from_the_events(attempt: Callable[..., Context]) -> None:
    board = Kept()
    first = attempt(1, board)
    for step in range(1, 8):  # written as events, never seen by the tracker
        first.event("step", step=step, steps=100, loss=10.0 - step)
    second = attempt(2, board)
    with tracking.Tracking(second, 5) as trail:
        steps(second, trail, 6, 7)
    assert board.steps == [1, 2, 3, 4, 5, 6, 7]
    assert abs(board.points[0].time - time.time()) < 60


def test_a_tracker_that_breaks_does_not_end_training_and_is_filled_in_at_the_end(
    attempt: Callable[..., Context], capfd: pytest.CaptureFixture[str]
) -> None:
    board = Kept()
    board.breaks_at = 4
    context = attempt(1, board)
    with tracking.Tracking(context, 0) as trail:
        steps(context, trail, 1, 8)
    assert board.steps == [1, 2, 3, 4, 5, 6, 7, 8]
    assert board.opened == 2
    assert board.ended == [FINISHED]
    assert "warning: tracking: kept is left out from here on: ConnectionError: nobody answers" in capfd.readouterr().err
    assert [event.get("trouble", "") for event in told(context)] == ["", "ConnectionError: nobody answers", ""]


def test_an_error_in_training_is_how_the_run_ends(attempt: Callable[..., Context]) -> None:
    board = Kept()
    context = attempt(1, board)
    ends_with(WorkerError("NaN", where="train"), context, 3)
    assert board.ended == [FAILED]
    assert board.steps == [1, 2, 3]


def test_other_ranks_and_values_that_are_no_numbers_are_left_out(attempt: Callable[..., Context]) -> None:
    board = Kept()
    with tracking.Tracking(attempt(1, board, rank=1), 0) as trail:
        trail.add("step", 1, {"loss": 1.0})
    assert not board.opened
    with tracking.Tracking(attempt(1, board), 0) as trail:
        trail.add("ranks", 1, {"slow_rank": 3, "slow_node": "n1", "slowdown": None, "stops": True})
    assert board.points[0].figures == {"ranks/slow_rank": 3.0}


def test_a_tracker_that_is_not_installed_is_refused_before_training(
    attempt: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = attempt(1, Kept())
    with pytest.raises(WorkerError, match="the train environment has no kept") as refusal:
        tracking.check(context)
    assert (refusal.value.where, refusal.value.exit_code) == ("tracking.kept", 78)
    monkeypatch.setattr(tracking, "TRACKERS", {})
    tracking.check(context)
