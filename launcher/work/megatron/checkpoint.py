"""Checkpoints: Megatron-core's torch_dist format, published whole or not at all, verified before use.

    checkpoints/step-00000010/
        .metadata, *.distcp, common.pt ...   weights (of adapters: the adapters alone), optimizer state,
                                             random states of every rank
        manifest.json                        step, progress, layout, loss, SHA-256 of every file

A checkpoint is written under a name that starts with a dot and renamed when its manifest is on disk. The newest one
whose manifest verifies is the one that counts, so nothing has to point at it. It is loaded into whatever layout the
ranks have; random states are of ranks, and go on in the same layout alone.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.record import read_json, write_json
from launcher.work.folders import sha256_of
from launcher.work.megatron import optimizer_state
from launcher.work.megatron.kept import MANIFEST, outdated, published
from launcher.work.megatron.model import Model
from launcher.work.megatron.saving import Deletion, Snapshot, Writer, in_plain_words, without_processes
from launcher.work.ranks import hash_files, listed


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


@dataclass
class _Pending:
    """A checkpoint that is being written."""

    part: Path
    final: Path
    writer: Writer
    manifest: dict[str, Any]
    started: float
    stalled: float = 0.0


class Checkpoints:
    """The checkpoints of one stage. All methods are called by every rank together.

    `settings` is [train.checkpoint]. After `load`, `loaded_from` is the layout of the checkpoint where it is another.
    """

    def __init__(
        self,
        folder: Path,
        model: Model,
        optimizer: Any,
        settings: Mapping[str, Any],
        *,
        layout: str,
        data: str,
        seed: int,
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.layout = layout
        self.data = data
        self.seed = seed
        self.asynchronous = bool(settings.get("asynchronous", True))
        self.keep_last = int(settings["keep_last"])
        self.keep_best = int(settings.get("keep_best", 0))
        self.save_optimizer = bool(settings.get("save_optimizer", True))
        self.loaded_from = ""
        self._snapshot = Snapshot()
        self._pending: _Pending | None = None
        self._deletion = Deletion()
        self._checked = False  # whether Megatron-core has found every tensor whole
        without_processes()

    @property
    def pending(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None

    def begin(self, progress: Progress, *, loss: float | None) -> None:
        """Begin to save; `settle` publishes. Not while one is pending. `loss`, if it is known, says how good it is.

        Raises OSError where the disk is full.
        """
        started = time.monotonic()
        self.model.gather()
        final = self.folder / f"step-{progress.step:08d}"
        part = self.folder / f".{final.name}.part"
        try:
            self._begin(progress, loss, part, final, started)
        except BaseException as error:
            self._give_up(part, final, error)
            raise

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
            self._give_up(pending.part, pending.final, error)
            raise
        now = time.monotonic()
        step = int(pending.manifest["progress"]["step"])
        return Saved(step, pending.final, now - pending.started, pending.stalled + now - started, size)

    def _begin(self, progress: Progress, loss: float | None, part: Path, final: Path, started: float) -> None:
        from megatron.core import dist_checkpointing

        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._deletion.wait()
            for stale in self.folder.glob(".*.part"):
                shutil.rmtree(stale)
            part.mkdir()
        found = optimizer_state.facts(self.optimizer) if self.save_optimizer else None
        state = self._state(found, with_random=True)
        self._snapshot.take(state, copy=self.asynchronous)
        dist.barrier()
        request = dist_checkpointing.save(
            state, str(part), async_sharded_save=True, validate_access_integrity=not self._checked
        )
        self._checked = True
        manifest = {
            "progress": asdict(progress),
            "layout": self.layout,
            "world_size": dist.get_world_size(),
            "data": self.data,
            "loss": loss,
            "optimizer": found,
        }
        self._pending = _Pending(part, final, Writer(request), manifest, started)
        self._pending.writer.start()
        self._pending.stalled = time.monotonic() - started

    def _publish(self, pending: _Pending) -> int:
        """Complete it, write the manifest, rename it, delete what is not to be kept; returns its size in bytes."""
        part, final, writer = pending.part, pending.final, pending.writer
        writer.complete()
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, writer.files)
        files = {name: facts for written in gathered for name, facts in written.items()}
        if dist.get_rank() == 0:
            for path in part.iterdir():  # what the first rank has written itself, about all of them
                if path.name not in files:
                    files[path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
            write_json(part / MANIFEST, {**pending.manifest, "files": dict(sorted(files.items()))})
            if final.exists():  # of the same step, but it did not verify
                shutil.rmtree(final)
            os.replace(part, final)
            _flush(self.folder)
            self._deletion.begin(outdated(self.folder, last=self.keep_last, best=self.keep_best))
        dist.barrier()
        return sum(facts["bytes"] for facts in files.values())

    def _give_up(self, part: Path, final: Path, error: BaseException) -> None:
        shutil.rmtree(part, ignore_errors=True)
        if plain := in_plain_words(error, final):
            raise plain from error

    def load(self) -> Progress | None:
        """Restore the newest checkpoint that verifies, warning of each that does not; None where there is none.

        Raises WorkerError when the data is not what the checkpoint was trained on, or the optimizer's state cannot go
        into another layout.
        """
        for path in reversed(listed(published(self.folder))):
            manifest, complaint = verified(path)
            if not complaint:
                self._restore(path, manifest)
                return Progress(**manifest["progress"])
            if dist.get_rank() == 0:
                print(f"warning: checkpoint {path} is left out: {complaint}", file=sys.stderr, flush=True)
        return None

    def _restore(self, path: Path, manifest: Any) -> None:
        from megatron.core import dist_checkpointing

        if manifest["data"] != self.data:
            raise WorkerError(
                "the training data has changed since this run's checkpoint was written",
                where=str(path),
                hint="start a new run for the new data",
            )
        same_layout = manifest["layout"] == self.layout and manifest["world_size"] == dist.get_world_size()
        found = manifest["optimizer"]
        if not same_layout:
            self.loaded_from = manifest["layout"]
            if found and not found["divisible"]:
                raise WorkerError(
                    f"the state of this optimizer cannot go from {manifest['layout']} into {self.layout}",
                    where=str(path),
                    hint="go on in the same layout, or start a run with adamw",
                )
        if found:
            optimizer_state.prepare(self.optimizer, found)
        loaded = dist_checkpointing.load(self._state(found, with_random=same_layout), str(path))
        set_weights(self.model, loaded, path)
        if found:
            optimizer_state.restore(self.optimizer, found, loaded["optimizer"])
        else:
            self.optimizer.reload_model_params()
        if same_layout:
            _set_random_state(loaded["random"])
        else:
            _new_random_state(self.seed, manifest["progress"]["step"])

    def _state(self, optimizer: Mapping[str, Any] | None, *, with_random: bool) -> dict[str, Any]:
        """This rank's part of the checkpoint, each tensor with its place in the whole; `optimizer` as in a manifest."""
        from megatron.core.dist_checkpointing.mapping import ShardedObject

        state = weights(self.model)
        if optimizer:
            places = dict(state)
            state["optimizer"] = optimizer_state.sharded(self.optimizer, places, divisible=optimizer["divisible"])
        if with_random:
            rank, world = dist.get_rank(), dist.get_world_size()
            state["random"] = ShardedObject("random", _random_state(), (world,), (rank,))
        return state


def weights(model: Model) -> dict[str, Any]:
    """The weights that a checkpoint holds, by chunk: what is trained, each tensor with its place in the whole."""
    return {f"model{index}": _weights(model, chunk) for index, chunk in enumerate(model.bare)}


def _weights(model: Model, chunk: Any) -> dict[str, Any]:
    whole: dict[str, Any] = chunk.sharded_state_dict()
    if model.bare is model.adapted:
        return whole
    head = "output_layer.weight" if model.scores else ""
    return {name: part for name, part in whole.items() if ".lora_" in name or name == head}


def set_weights(model: Model, loaded: Mapping[str, Any], path: Path) -> None:
    """Put loaded weights into the model. Raises WorkerError where they are not those of this model."""
    for index, chunk in enumerate(model.bare):
        missing, unexpected = chunk.load_state_dict(loaded[f"model{index}"], strict=False)
        trained = {name for name, parameter in chunk.named_parameters() if parameter.requires_grad}
        if unexpected or trained & set(missing):
            raise WorkerError(
                f"weights do not fit this model: missing {sorted(trained & set(missing))}, unknown {unexpected}",
                where=str(path),
            )


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


def _agreed(writer: Writer) -> bool:
    """Whether all ranks have written their part. Raises what made one fail; on other ranks, that one has."""
    alive, error = writer.is_alive(), writer.error  # as all are told, whatever happens meanwhile
    counts = torch.tensor([float(alive), float(error is not None)], dtype=torch.float64).to("cuda")
    dist.all_reduce(counts)
    writing, failed = counts.tolist()
    if error is not None:
        raise error
    if failed:
        raise ConnectionError("another rank could not write its part of the checkpoint")
    return not writing


def _random_state() -> dict[str, Any]:
    from megatron.core import tensor_parallel

    state = {
        "python": random.getstate(),
        "torch": torch.get_rng_state(),
        "tracker": tensor_parallel.get_cuda_rng_tracker().get_states(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    from megatron.core import tensor_parallel

    random.setstate(state["python"])
    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
    torch.set_rng_state(state["torch"])


def _new_random_state(seed: int, step: int) -> None:
    """Random numbers of ranks that no checkpoint has states of: from the run's seed and the step."""
    from megatron.core import tensor_parallel

    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    fresh = int.from_bytes(digest[:6], "little")
    random.seed(fresh)
    tensor_parallel.model_parallel_cuda_manual_seed(fresh)


def _flush(folder: Path) -> None:
    """Make the rename last: a directory is a file too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
