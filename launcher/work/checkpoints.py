"""Checkpoints, by one rule for all engines: written beside training, published whole or not at all, and verified.

    checkpoints/step-00000010/
        ...              what the engine writes
        manifest.json    step, progress, layout, loss, SHA-256 of every file

A checkpoint is written under a name that starts with a dot and renamed when its manifest is on disk. The newest one
whose manifest verifies is the one that counts, so nothing has to point at it.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.record import read_json, write_json
from launcher.work.kept import MANIFEST, outdated, published
from launcher.work.ranks import device, hash_files, listed
from launcher.work.writer import Deletion, Writer, facts_of, in_plain_words


@dataclass
class Progress:
    """How far training is. `step` counts finished steps, and is the position in the data; `loss` is the last one's."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0


class Saved(NamedTuple):
    """A published checkpoint: seconds from its beginning, those of them in which training stood, bytes of its files."""

    step: int
    path: Path
    seconds: float
    stall_seconds: float
    bytes: int


class Part(NamedTuple):
    """What an engine adds to a checkpoint.

    `write`, in a thread, writes this rank's files and returns their paths; `complete` is called by all ranks together
    when all have written. `optimizer` is what the manifest says of the optimizer's state, None where that is not in it.
    """

    write: Callable[[], Iterable[Path]]
    complete: Callable[[], None]
    optimizer: Mapping[str, Any] | None


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    folder: Path
    final: Path
    writer: Writer
    complete: Callable[[], None]
    manifest: dict[str, Any]
    started: float
    stalled: float = 0.0


class Checkpoints(ABC):
    """The checkpoints of one stage. All methods are called by every rank together.

    `settings` is [train.checkpoint]. After `load`, `loaded_from` is the layout of the checkpoint where it is another.
    """

    same_layout_only = ""  # how to go on with a checkpoint that cannot go into another layout

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, layout: str, data: str) -> None:
        self.folder = folder
        self.layout = layout
        self.asynchronous = bool(settings.get("asynchronous", True))
        self.loaded_from = ""
        self._data = data
        self._keep_last = int(settings["keep_last"])
        self._keep_best = int(settings.get("keep_best", 0))
        self._with_optimizer = bool(settings.get("save_optimizer", True))
        self._pending: _Pending | None = None
        self._deletion = Deletion()

    @abstractmethod
    def _copied(self, folder: Path) -> Part:
        """Copy what training changes, if it goes on meanwhile; files are to be written into `folder`."""

    @abstractmethod
    def _divisible(self, optimizer: Mapping[str, Any] | None) -> bool:
        """Whether a checkpoint of which the manifest says this can go into another layout."""

    @abstractmethod
    def _restore(self, path: Path, manifest: Any, *, same_layout: bool) -> None:
        """Restore weights, optimizer and random states."""

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None

    def begin(self, progress: Progress, *, loss: float | None) -> None:
        """Begin to save; `settle` publishes. Not while one is pending. `loss`, if it is known, says how good it is.

        Raises OSError where the disk is full.
        """
        started = time.monotonic()
        final = self.folder / f"step-{progress.step:08d}"
        folder = self.folder / f".{final.name}.part"
        try:
            self._make_room(folder)
            part = self._copied(folder)
        except BaseException as error:
            self._give_up(folder, final, error)
            raise
        manifest = {
            "progress": asdict(progress),
            "layout": self.layout,
            "world_size": dist.get_world_size(),
            "data": self._data,
            "loss": loss,
            "optimizer": part.optimizer,
        }
        self._pending = _Pending(folder, final, Writer(folder, part.write), part.complete, manifest, started)
        self._pending.writer.start()
        self._pending.stalled = time.monotonic() - started

    def settle(self, *, wait: bool) -> Saved | None:
        """Publish what is pending once every rank has written its part; without `wait` None if one has not.

        Deletes older checkpoints, the newest `keep_last` and the best `keep_best` left out. Raises OSError where the
        disk is full, and takes away what was written by then: reports need room.
        """
        pending, started = self._pending, time.monotonic()
        if pending is None:
            return None
        try:
            if wait:
                pending.writer.join()
            if not _agreed(pending.writer):
                pending.stalled += time.monotonic() - started
                return None
            self._pending = None
            size = self._publish(pending)
            if wait:
                self._deletion.wait()
        except BaseException as error:  # torch's CheckpointException is no Exception
            self._pending = None
            self._give_up(pending.folder, pending.final, error)
            raise
        now = time.monotonic()
        step = int(pending.manifest["progress"]["step"])
        return Saved(step, pending.final, now - pending.started, pending.stalled + now - started, size)

    def load(self) -> Progress | None:
        """Restore the newest checkpoint that verifies, warning of each that does not; None where there is none.

        Raises WorkerError when the data is not what the checkpoint was trained on, or it is of another layout and
        cannot go into this one.
        """
        for path in reversed(listed(published(self.folder))):
            manifest, complaint = verified(path)
            if not complaint:
                self._restore(path, manifest, same_layout=self._fits(path, manifest))
                return Progress(**manifest["progress"])
            if dist.get_rank() == 0:
                print(f"warning: checkpoint {path} is left out: {complaint}", file=sys.stderr, flush=True)
        return None

    def _make_room(self, folder: Path) -> None:
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._deletion.wait()
            for stale in self.folder.glob(".*.part"):
                shutil.rmtree(stale)
            folder.mkdir()
        dist.barrier()

    def _publish(self, pending: _Pending) -> int:
        """Complete it, write the manifest, rename it, delete what is not to be kept; returns its size in bytes."""
        folder, final = pending.folder, pending.final
        pending.complete()
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, pending.writer.files)
        files = {name: facts for written in gathered for name, facts in written.items()}
        if dist.get_rank() == 0:
            for path in folder.rglob("*"):  # what the first rank has written itself, about all of them
                name = str(path.relative_to(folder))
                if name not in files and path.is_file():
                    files[name] = facts_of(path)
            write_json(folder / MANIFEST, {**pending.manifest, "files": dict(sorted(files.items()))})
            if final.exists():  # of the same step, but it did not verify
                shutil.rmtree(final)
            os.replace(folder, final)
            _flush(self.folder)
            self._deletion.begin(outdated(self.folder, last=self._keep_last, best=self._keep_best))
        dist.barrier()
        return sum(facts["bytes"] for facts in files.values())

    def _give_up(self, folder: Path, final: Path, error: BaseException) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        if plain := in_plain_words(error, final):
            raise plain from error

    def _fits(self, path: Path, manifest: Any) -> bool:
        """Whether the checkpoint is of this layout. Raises WorkerError where it cannot be used."""
        if manifest["data"] != self._data:
            raise WorkerError(
                "the training data has changed since this run's checkpoint was written",
                where=str(path),
                hint="start a new run for the new data",
            )
        if manifest["layout"] == self.layout and manifest["world_size"] == dist.get_world_size():
            return True
        self.loaded_from = manifest["layout"]
        if not self._divisible(manifest["optimizer"]):
            raise WorkerError(
                f"this checkpoint cannot go from {manifest['layout']} into {self.layout}",
                where=str(path),
                hint=self.same_layout_only,
            )
        return False


def verified(path: Path) -> tuple[Any, str]:
    """A checkpoint's manifest, and why the checkpoint cannot be used ("" if it can). The same on every rank."""
    try:
        manifest = read_json(path / MANIFEST)
        wanted: dict[str, Any] = manifest["files"]
    except (ValueError, KeyError, TypeError):
        return None, f"{MANIFEST} is damaged"
    digests = hash_files([path / name for name in wanted])
    for (name, facts), digest in zip(wanted.items(), digests, strict=True):
        if digest != facts["sha256"]:
            return manifest, f"{name} is {'damaged' if digest else 'missing'}"
    return manifest, ""


def random_state() -> dict[str, Any]:
    """Of this rank, as libraries keep it."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from what `random_state` has returned."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _agreed(writer: Writer) -> bool:
    """Whether all ranks have written their part. Raises what made one fail; on other ranks, that one has."""
    alive, error = writer.is_alive(), writer.error  # as all are told, whatever happens meanwhile
    counts = torch.tensor([float(alive), float(error is not None)], dtype=torch.float64, device=device())
    dist.all_reduce(counts)
    writing, failed = counts.tolist()
    if error is not None:
        raise error
    if failed:
        raise ConnectionError("another rank could not write its part of the checkpoint")
    return not writing


def _flush(folder: Path) -> None:
    """Make the rename last: a directory is a file too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
