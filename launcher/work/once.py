"""A folder that many processes want and one makes, on a shared file system whose file locks may not work.

Whoever creates the lock file makes the folder, under a name of its own beside the final one, and renames it: the folder
is there whole or not at all, and two makers cannot spoil each other's work. Others wait as long as the maker's files
grow. Clocks of different nodes are not compared.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STALE_SECONDS = 120.0  # a maker whose files do not change for so long is taken for dead
LATE_SECONDS = 600.0  # those who wait for a maker give up after so long a silence
POLL_SECONDS = 0.5


def make_once(
    folder: Path, make: Callable[[Path], None], *, who: Mapping[str, Any], on_wait: Callable[[str], None]
) -> None:
    """Return when `folder` is there: made by `make(part)` here, or by somebody else meanwhile.

    `who` names this run and is shown to those who wait; a lock of an earlier attempt of the same run is ours.
    `on_wait` is called at every look while somebody else makes the folder; it may raise to end the waiting.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    watch = _Watch(folder)
    me = f"{socket.gethostname()}-{os.getpid()}"
    while not _there(folder):
        part = folder.with_name(f".{folder.name}.{me}.part")
        if _created(lock, {**who, "host": socket.gethostname(), "part": part.name}):
            try:
                if not _there(folder):  # another's, made between our two looks
                    _make(folder, part, make)
            finally:
                shutil.rmtree(part, ignore_errors=True)
                if _owner(lock).get("part") == part.name:  # else somebody took us for dead
                    lock.unlink(missing_ok=True)
            return
        owner = _owner(lock)
        if owner.get("run") == who["run"] or watch.silent_seconds() > STALE_SECONDS:
            _take_away(lock, owner, folder.parent, me)
            continue
        on_wait(_words(owner))
        time.sleep(POLL_SECONDS)


def wait_made(folder: Path, *, on_wait: Callable[[str], None]) -> None:
    """Return when `folder` is there. Raises TimeoutError that names its maker when that has fallen silent."""
    watch = _Watch(folder)
    while not _there(folder):
        owner = _owner(_lock(folder))
        if (silent := watch.silent_seconds()) > LATE_SECONDS:
            raise TimeoutError(f"{folder} is not there: {_words(owner)} has written nothing for {silent:.0f} s")
        on_wait(_words(owner))
        time.sleep(POLL_SECONDS)


def _make(folder: Path, part: Path, make: Callable[[Path], None]) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    make(part)
    for path in part.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        os.rename(part, folder)
    except OSError:
        if not _there(folder):  # another, who took us for dead, was faster
            raise


class _Watch:
    """How long a maker has been silent, by this process's clock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: object = None
        self._since = time.monotonic()

    def silent_seconds(self) -> float:
        owner = _owner(_lock(self.folder))
        sizes = []
        part = self.folder.with_name(owner["part"]) if "part" in owner else None
        for path in sorted(part.iterdir()) if part is not None and part.is_dir() else []:
            try:
                sizes.append(path.stat().st_size)
            except FileNotFoundError:
                continue
        if (owner, sizes) != self._seen:
            self._seen, self._since = (owner, sizes), time.monotonic()
        return time.monotonic() - self._since


def _there(folder: Path) -> bool:
    """Asks for the parent's list: network file systems remember for a while that a name was not there."""
    return folder.name in os.listdir(folder.parent) if folder.parent.is_dir() else False


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _created(lock: Path, owner: Mapping[str, Any]) -> bool:
    try:
        handle = os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(dict(owner), file)
    return True


def _owner(lock: Path) -> dict[str, Any]:
    """What the lock says; nothing where there is none, or one that is being written."""
    try:
        return dict(json.loads(lock.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def _take_away(lock: Path, owner: Mapping[str, Any], cache: Path, me: str) -> None:
    """Remove a dead maker's lock and what it left; of several who try at once, one removes each."""
    aside = lock.with_name(f"{lock.name}.{me}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    aside.unlink()
    if "part" in owner:
        shutil.rmtree(cache / str(owner["part"]), ignore_errors=True)


def _words(owner: Mapping[str, Any]) -> str:
    return f"run {owner['run']} on {owner['host']}" if owner else "its maker"
