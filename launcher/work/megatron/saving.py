"""Writing a checkpoint beside training: a copy of the state in host memory, and a thread that writes it.

Megatron-core would start processes for it, by fork and with a helper that holds a queue. Slurm signals every process
of a step, before the time limit and at preemption, and a fork of a process with threads may wait for a lock for ever.
A thread has neither problem, and writing and hashing large blocks leave the interpreter to training.
"""

from __future__ import annotations

import errno
import os
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from launcher.failures import FULL_DISK, classify
from launcher.work.folders import sha256_of


class Snapshot:
    """Copies in host memory of what this rank writes. The memory is kept for the next one: to make it takes longer."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[int, ...]], Any] = {}

    def take(self, state: Mapping[str, Any], *, copy: bool) -> None:
        """Let `state`, as Megatron-core's checkpoints take it, refer to copies instead of to what training changes.

        Without `copy` only what is not in host memory is copied: training waits until the file is written.
        """
        from megatron.core.dist_checkpointing.dict_utils import nested_values
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

        apply_factories(state)
        for part in nested_values(state):
            if not isinstance(part, ShardedTensor) or not is_main_replica(part.replica_id):
                continue
            if not copy and part.data.device.type == "cpu":
                continue
            place = (part.key, part.global_offset)
            host = self._kept.get(place)
            if host is None or host.shape != part.data.shape or host.dtype != part.data.dtype:
                pinned = torch.cuda.is_available()
                host = torch.empty(part.data.shape, dtype=part.data.dtype, device="cpu", pin_memory=pinned)
                self._kept[place] = host
            host.copy_(part.data.detach(), non_blocking=True)
            part.data = host
        if torch.cuda.is_available():
            torch.cuda.synchronize()


class Writer(threading.Thread):
    """Writes this rank's files. Read `error`, `files` (SHA-256 and size by name) and `bytes` when it has ended."""

    def __init__(self, request: Any) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._request = request  # megatron.core's AsyncRequest
        self.error: BaseException | None = None
        self.files: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:
            self.error = error

    def complete(self) -> None:
        """Write what describes the files of all ranks. Every rank calls it together, when all have ended well."""
        for finish in self._request.finalize_fns:
            finish()

    def _write(self) -> None:
        from megatron.core.dist_checkpointing.strategies.filesystem_async import _write_item
        from torch.distributed.checkpoint.filesystem import SerializationFormat

        if self._request.async_fn is None:  # nothing of it is this rank's to write
            return
        transforms, *_ = self._request.async_fn.args
        _, buckets, results = self._request.async_fn_args
        written = {}
        for index, (path, name, parts) in enumerate(buckets):
            with open(path, "wb") as out:
                written[index] = [
                    _write_item(*transforms, out, data, item, name, SerializationFormat.TORCH_SAVE)
                    for items in parts
                    for item, data in items
                ]
                out.flush()
                os.fsync(out.fileno())
            self.files[name] = {"sha256": sha256_of(Path(path)), "bytes": os.path.getsize(path)}
        results.put(written)


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


def without_processes() -> None:
    """Keep Megatron-core from starting the helper that holds the queue of its writers' results."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()
