"""Checkpoints: Megatron-core's torch_dist format, published whole or not at all, verified before use.

    checkpoints/step-00000010/
        .metadata, *.distcp, common.pt ...   weights (of adapters: the adapters alone), optimizer state,
                                             random states of every rank
        manifest.json                        step, progress, layout, SHA-256 of every file

A checkpoint is written under a name that starts with a dot and renamed when its manifest is on disk. The newest one
whose manifest verifies is the one that counts, so nothing has to point at it.
"""

from __future__ import annotations

import errno
import os
import queue
import random
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.record import read_json, write_json
from launcher.work.megatron.model import Model
from launcher.work.megatron.optimizer import ensure_state, unshare_steps
from launcher.work.ranks import hash_files, listed

MANIFEST = "manifest.json"
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable"}  # the one that also loads into another layout


@dataclass
class Progress:
    """How far training is. `step` counts finished steps, and is the position in the data; `loss` is the last one's."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = 0.0


class Checkpoints:
    """The checkpoints of one stage. All methods are called by every rank together."""

    def __init__(
        self, folder: Path, model: Model, optimizer: Any, *, layout: str, data: str, keep: int, save_optimizer: bool
    ) -> None:
        self.folder = folder
        self.model = model
        self.optimizer = optimizer
        self.layout = layout
        self.data = data
        self.keep = keep
        self.save_optimizer = save_optimizer
        _write_without_helper()

    def save(self, progress: Progress) -> Path:
        """Write, publish, and delete what is older than the newest `keep`.

        Raises OSError where the disk is full, and takes away what was written by then: reports need room.
        """
        final = self.folder / f"step-{progress.step:08d}"
        part = self.folder / f".{final.name}.part"
        try:
            self._save(progress, part, final)
        except BaseException as error:  # torch's CheckpointException is no Exception
            shutil.rmtree(part, ignore_errors=True)
            if plain := _in_plain_words(error, final):
                raise plain from error
            raise
        return final

    def _save(self, progress: Progress, part: Path, final: Path) -> None:
        from megatron.core import dist_checkpointing

        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".*.part"):
                shutil.rmtree(stale)
            part.mkdir()
        dist.barrier()
        dist_checkpointing.save(self._state(with_optimizer=self.save_optimizer, with_random=True), str(part))
        dist.barrier()
        written = listed(part.iterdir())
        digests = hash_files(written)
        if dist.get_rank() == 0:
            manifest = {
                "progress": asdict(progress),
                "layout": self.layout,
                "world_size": dist.get_world_size(),
                "data": self.data,
                "optimizer": self.save_optimizer,
                "files": {
                    path.name: {"sha256": digest, "bytes": path.stat().st_size}
                    for path, digest in zip(written, digests, strict=True)
                },
            }
            write_json(part / MANIFEST, manifest)
            if final.exists():  # of the same step, but it did not verify
                shutil.rmtree(final)
            os.replace(part, final)
            _flush(self.folder)
            for old in self._found()[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()

    def load(self) -> Progress | None:
        """Restore the newest checkpoint that verifies, warning of each that does not; None where there is none.

        Raises WorkerError when the data is not what the checkpoint was trained on.
        """
        for path in reversed(listed(self._found())):
            manifest, complaint = self._verified(path)
            if not complaint:
                self._restore(path, manifest)
                return Progress(**manifest["progress"])
            if dist.get_rank() == 0:
                print(f"warning: checkpoint {path} is left out: {complaint}", file=sys.stderr, flush=True)
        return None

    def _found(self) -> list[Path]:
        """Published checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / MANIFEST).is_file())

    def _verified(self, path: Path) -> tuple[Any, str]:
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

    def _restore(self, path: Path, manifest: Any) -> None:
        from megatron.core import dist_checkpointing

        if manifest["data"] != self.data:
            raise WorkerError(
                "the training data has changed since this run's checkpoint was written",
                where=str(path),
                hint="start a new run for the new data",
            )
        same_layout = manifest["layout"] == self.layout and manifest["world_size"] == dist.get_world_size()
        if manifest["optimizer"]:
            ensure_state(self.optimizer)
        state = self._state(with_optimizer=manifest["optimizer"], with_random=same_layout, loading=True)
        loaded = dist_checkpointing.load(state, str(path))
        for index, chunk in enumerate(self.model.bare):
            missing, unexpected = chunk.load_state_dict(loaded[f"model{index}"], strict=False)
            trained = {name for name, parameter in chunk.named_parameters() if parameter.requires_grad}
            if unexpected or trained & set(missing):
                raise WorkerError(
                    f"weights do not fit this model: missing {sorted(trained & set(missing))}, unknown {unexpected}",
                    where=str(path),
                )
        if manifest["optimizer"]:
            self.optimizer.load_state_dict(loaded["optimizer"])
            unshare_steps(self.optimizer)
        else:
            self.optimizer.reload_model_params()
        if same_layout:
            _set_random_state(loaded["random"])

    def _state(self, *, with_optimizer: bool, with_random: bool, loading: bool = False) -> dict[str, Any]:
        """This rank's part of the checkpoint, each tensor with its place in the whole."""
        from megatron.core.dist_checkpointing.mapping import ShardedObject

        state: dict[str, Any] = {}
        for index, chunk in enumerate(self.model.bare):
            state[f"model{index}"] = self._weights(chunk)
        if with_optimizer:
            # the optimizer finds its parameters under "model", or "model0", "model1" ... per chunk
            state["optimizer"] = self.optimizer.sharded_state_dict(state, is_loading=loading, metadata=dict(SHARDING))
        if with_random:
            rank, world = dist.get_rank(), dist.get_world_size()
            state["random"] = ShardedObject("random", _random_state(), (world,), (rank,))
        return state

    def _weights(self, chunk: Any) -> dict[str, Any]:
        whole: dict[str, Any] = chunk.sharded_state_dict(metadata=dict(SHARDING))
        if self.model.bare is self.model.adapted:
            return whole
        head = "output_layer.weight" if self.model.scores else ""
        return {name: part for name, part in whole.items() if ".lora_" in name or name == head}


def _write_without_helper() -> None:
    """Keep Megatron-core from starting a process that lives as long as the rank, to hold a queue of its writers.

    Slurm signals every process of a step, before the time limit and at preemption. That one would end, and the save
    that the signal asks for would fail. A save that is not asynchronous needs no queue beyond this process.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()


def _in_plain_words(error: BaseException, path: Path) -> Exception | None:
    """What made a save fail, as an exception that tells whether another attempt can help; None where it tells itself.

    Megatron-core turns what a rank's writing process saw into text, and gives that to the first rank alone.
    """
    if getattr(error, "failures", None) == {}:
        return ConnectionError(f"another rank could not write its part of {path.name}")
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in str(error):
            return OSError(number, os.strerror(number), str(path))
    return None


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


def _flush(folder: Path) -> None:
    """Make the rename last: a directory is a file too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
