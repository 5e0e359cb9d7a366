"""Logs of a stage: which file, and following it across attempts."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.errors import UserError
from launcher.plan import Plan
from launcher.rundir import RunDir
from launcher.standing import StageStatus
from launcher.states import State

POLL_SECONDS = 0.5
ASK_SECONDS = 5.0  # between two questions whether the stage has ended
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Source:
    """One log of one stage: a rank's in an attempt (None: the newest), or the job script's."""

    files: RunDir
    stage: str
    rank: int = 0
    attempt: int | None = None
    batch: bool = False
    group: str = ""

    def path(self) -> Path:
        """The file now. Raises UserError where there is none (yet)."""
        if self.batch:
            path = self.files.batch_log(self.stage)
        else:
            attempt = self.attempt or newest_attempt(self.files, self.stage)
            path = self.files.rank_log(self.stage, attempt, self.rank, self.group)
        if not path.is_file():
            raise UserError(
                f"{self.stage} has no such log yet",
                where=str(path),
                hint="--batch shows the job script's log" if not self.batch else "the job has not started",
            )
        return path


def newest_attempt(files: RunDir, stage: str) -> int:
    """Number of the newest attempt that has begun; 1 before the first."""
    numbers = [int(path.name.rpartition("-")[2]) for path in files.batch_log(stage).parent.glob("attempt-*")]
    return max(numbers, default=1)


def known_stage(plan: Plan, text: str) -> str:
    """The stage of that name. Raises UserError that names those there are."""
    names = [stage.name for stage in plan.stages]
    if text in names:
        return text
    close = difflib.get_close_matches(text, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"its stages are: {', '.join(names)}"
    raise UserError(f"run {plan.run_id} has no stage {text!r}", hint=hint)


def known_group(plan: Plan, stage: str, text: str) -> str:
    """The stage's group of that name, the first without a name; "" for a stage without groups.

    Raises UserError that names those there are.
    """
    names = [group.name for box in plan.stages if box.name == stage for group in box.groups]
    if text and text not in names:
        hint = f"its groups are: {', '.join(names)}" if names else "it has no groups: leave --group out"
        raise UserError(f"stage {stage} has no group {text!r}", hint=hint)
    return text or (names[0] if names else "")


def choose_stage(plan: Plan, stages: Sequence[StageStatus], text: str) -> str:
    """The stage that is asked for; without one the stage that runs, else one that failed, else the last that began."""
    if text:
        return known_stage(plan, text)
    begun = [stage for stage in stages if stage.attempts]
    running = [stage for stage in begun if stage.state in (State.RUNNING, State.REQUEUED)]
    failed = [stage for stage in begun if stage.state.terminal and not stage.state.succeeded]
    for candidates in (running, failed[:1], begun):
        if candidates:
            return candidates[-1].name
    return plan.stages[0].name


def copy(path: Path, out: BinaryIO, *, offset: int = 0) -> int:
    """Copy a file from `offset` on, as it is; returns the offset after it."""
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            out.write(block)
        out.flush()
        return file.tell()


def follow(source: Source, out: BinaryIO, *, ended: Callable[[], bool], announce: Callable[[str], None]) -> None:
    """Copy what is written, from attempt to attempt, until `ended` says so; waits for a log that is not there yet."""
    current: Path | None = None
    offset = 0
    last_asked = 0.0
    over = False
    while True:
        path = _present(source, current, wait=not over)
        if current is not None and path != current:
            copy(current, out, offset=offset)  # the rest of the attempt before
        if path is not None and path != current:
            announce(f"==> {path}")
            current, offset = path, 0
        if current is not None:
            offset = copy(current, out, offset=offset)
        if over:
            return
        if time.monotonic() - last_asked > ASK_SECONDS:
            over = ended()  # one more look at the file after this, for its last lines
            last_asked = time.monotonic()
        if not over:
            time.sleep(POLL_SECONDS)


def _present(source: Source, before: Path | None, *, wait: bool) -> Path | None:
    """The source's file now, else the one before. Raises UserError if there is neither, and nothing to wait for."""
    try:
        return source.path()
    except UserError:
        if before is None and not wait:
            raise
        return before
