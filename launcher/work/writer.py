"""Writing and deleting checkpoints beside training, in threads.

Megatron-core and torch would start processes for it, by fork and with a helper that holds a queue. Slurm signals every
process of a step, before the time limit and at preemption, and a fork of a process with threads may wait for a lock for
ever. A thread has neither problem, and writing and hashing large blocks leave the interpreter to training.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher.failures import FULL_DISK, classify
from launcher.work.folders import sha256_of


class Writer(threading.Thread):
    """Writes this rank's files of a checkpoint. Read `error`, and `files`, when it has ended.

    `write` returns the paths that it has written, below `folder`; `files` are their SHA-256 and size by name.
    """

    def __init__(self, folder: Path, write: Callable[[], Iterable[Path]]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._folder = folder
        self._write = write
        self.error: BaseException | None = None
        self.files: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        try:
            self.files = {str(path.relative_to(self._folder)): facts_of(path) for path in self._write()}
        except BaseException as error:  # torch's CheckpointException is no Exception
            self.error = error


def facts_of(path: Path) -> dict[str, Any]:
    """What a manifest says of a file, read back from the disk."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


class Deletion:
    """Deletes old checkpoints beside training: large files take time. What a death leaves goes with the next save."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self, paths: Sequence[Path]) -> None:
        """Take them away under other names, that of what is half written, and begin to delete them."""
        aside = [path.with_name(f".{path.name}.old.part") for path in paths]
        for path, place in zip(paths, aside, strict=True):
            os.replace(path, place)
        self._thread = threading.Thread(target=_delete, args=(aside,), name="deletion", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()


def _delete(folders: Sequence[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def in_plain_words(error: BaseException, path: Path) -> Exception | None:
    """What made a save fail, as an exception that tells whether another attempt can help; None where it tells itself.

    torch and Megatron-core turn what they saw into text, and may give that to the first rank alone.
    """
    if getattr(error, "failures", None) == {}:
        return ConnectionError(f"another rank could not write its part of {path.name}")
    if os.strerror(errno.EDQUOT) in str(error):
        return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))
    if classify(error).hint == FULL_DISK:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return None
