"""Logs of all ranks at once: lines as they come, each with who wrote it, from attempt to attempt."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from launcher.rundir import RunDir
from launcher.view.logs import ASK_SECONDS, POLL_SECONDS

_BLOCK = 1 << 20


@dataclass
class _Tail:
    """One growing file and how far it was read; `rest` is a line that is not whole yet."""

    path: Path
    label: bytes
    offset: int = 0
    rest: bytes = b""

    def lines(self) -> Iterator[bytes]:
        """The whole lines that came since; a file that became shorter is read again from its start."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size < self.offset:
            self.offset, self.rest = 0, b""
        if size == self.offset:
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while block := file.read(_BLOCK):
                self.offset += len(block)
                *whole, self.rest = (self.rest + block).split(b"\n")
                yield from whole


class Merged:
    """The logs of a run's stages from now on. `since` gives, for each stage, the first attempt that counts."""

    def __init__(self, files: RunDir, since: Mapping[str, int], *, named: bool) -> None:
        """With `named` every line says its stage too."""
        self._files = files
        self._since = dict(since)
        self._named = named
        self._tails: dict[Path, _Tail] = {}
        self._attempts: dict[str, int] = {}
        for stage in since:
            log = files.batch_log(stage)
            size = log.stat().st_size if log.exists() else 0  # of the job script what comes, not what was before
            self._tails[log] = _Tail(log, self._label(stage, "job"), offset=size)

    def copy(self, out: BinaryIO, announce: Callable[[str], None], *, last: bool = False) -> None:
        """Write what came since the last call; the `last` one also writes lines that were cut off."""
        for stage, first in self._since.items():
            self._look(stage, first, announce)
        for tail in self._tails.values():
            for line in tail.lines():
                out.write(tail.label + line + b"\n")
            if last and tail.rest:
                out.write(tail.label + tail.rest + b"\n")
        out.flush()

    def _look(self, stage: str, first: int, announce: Callable[[str], None]) -> None:
        """Find logs that are new, of all attempts: a short one may have come and gone between two looks."""
        folder = self._files.batch_log(stage).parent
        for attempt in sorted(int(path.name.rpartition("-")[2]) for path in folder.glob("attempt-*")):
            if attempt < first:
                continue
            if attempt > self._attempts.get(stage, 0):
                self._attempts[stage] = attempt
                announce(f"==> {stage}, attempt {attempt}: {self._files.attempt(stage, attempt)}")
            elif attempt < self._attempts[stage]:
                continue  # its ranks have ended: what it has is known
            place = self._files.attempt(stage, attempt)
            for path in sorted((*place.glob("rank-*.log"), *place.glob("*/rank-*.log")), key=_by_rank):
                if path not in self._tails:
                    who = "rank" if path.parent == place else path.parent.name
                    self._tails[path] = _Tail(path, self._label(stage, f"{who} {_by_rank(path)[1]}"))

    def _label(self, stage: str, who: str) -> bytes:
        return f"{stage} {who} | ".encode() if self._named else f"{who} | ".encode()


def follow_merged(logs: Merged, out: BinaryIO, *, ended: Callable[[], bool], announce: Callable[[str], None]) -> None:
    """Copy what is written until `ended` says so, which is asked every now and then."""
    while True:
        logs.copy(out, announce)
        asked = time.monotonic()
        if ended():
            logs.copy(out, announce, last=True)
            return
        while time.monotonic() - asked < ASK_SECONDS:
            time.sleep(POLL_SECONDS)
            logs.copy(out, announce)


def _by_rank(path: Path) -> tuple[str, int]:
    number = path.stem.rpartition("-")[2]
    return str(path.parent), int(number) if number.isdigit() else 0
