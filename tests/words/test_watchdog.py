"""What becomes of the watch over a rank while the run's file system fails."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.plan import Resume
from launcher.work import watchdog
from launcher.work.watchdog import Watchdog

pytestmark = pytest.mark.unit


class Clock:
    """In the place of faulthandler: only whether its clock is set."""

    def __init__(self) -> None:
        self.set = False

    def dump_traceback_later(self, seconds: float, **_: Any) -> None:
        self.set = True

    def cancel_dump_traceback_later(self) -> None:
        self.set = False


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(watchdog, "faulthandler", clock)
    return clock


def a_watchdog(folder: Path, *, seconds: float) -> Watchdog:
    resume = Resume(hang_factor=2.0, hang_floor_seconds=0.04, hang_start_seconds=seconds)
    files = SimpleNamespace(ranks=lambda *_: folder)
    stage = SimpleNamespace(name="train", resume=resume)
    context: Any = SimpleNamespace(files=files, stage=stage, attempt=1, group="", rank=0, world_size=1)
    return Watchdog(context)


def failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> threading.Event:
    """Let a method of Path fail; the event is set whenever it has."""
    failed = threading.Event()

    def fail(*_: Any, **__: Any) -> None:
        failed.set()
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(watchdog.Path, name, fail)
    return failed


@pytest.mark.parametrize(("name", "number"), [("exists", errno.ESTALE), ("open", errno.ENOSPC)])
def test_a_healthy_rank_is_watched_on(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    watched = a_watchdog(tmp_path, seconds=600.0)
    watched.expect_steps()
    with monkeypatch.context() as patch:
        failed = failing(patch, name, number)
        watched.start()
        for _ in range(2):
            assert failed.wait(10)
            failed.clear()
        deadline = time.monotonic() + 10
        while clock.set and time.monotonic() < deadline:
            time.sleep(0.001)
        assert not clock.set
    deadline = time.monotonic() + 10
    while not clock.set and time.monotonic() < deadline:
        time.sleep(0.01)
    assert clock.set  # it is well again, and so is the watch
    watched.stop()


def test_a_rank_that_hangs_as_well_is_ended(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(watchdog, "end_process", lambda code: ended.set())
    watched = a_watchdog(tmp_path, seconds=0.04)
    watched.expect_steps()
    failing(monkeypatch, "exists", errno.EIO)
    watched.start()
    assert ended.wait(10)
    watched.stop()
