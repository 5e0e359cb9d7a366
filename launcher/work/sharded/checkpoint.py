"""Checkpoints of the sharded engines, by the rule of all engines: published whole or not at all, verified before use.

checkpoints/step-00000010/
    *.distcp, .metadata    FSDP: torch's distributed checkpoint of what is trained and the optimizer's state
    zero/                  DeepSpeed: its own files, one for each rank
    state.pt               one rank, with an optimizer whose state torch cannot divide
    random-RANK.pt         random state of each rank
    manifest.json          step, progress, layout, loss, SHA-256 of every file
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.record import write_json
from launcher.work.megatron.checkpoint import Progress, Saved, verified
from launcher.work.megatron.kept import MANIFEST, outdated, published
from launcher.work.megatron.saving import in_plain_words
from launcher.work.ranks import hash_files, listed
from launcher.work.sharded.engines import Engine


class Checkpoints:
    """The checkpoints of one stage. All methods are called by every rank together.

    `settings` is [train.checkpoint]. Where there is a file `start`, what adapters began from, each checkpoint has it
    too, and so says all of the weights. After `load`, `loaded_from` is the checkpoint's layout where it is another.
    """

    asynchronous = False

    def __init__(
        self, folder: Path, engine: Engine, settings: Mapping[str, Any], *, layout: str, data: str, start: Path
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.loaded_from = ""
        self._engine = engine
        self._data = data
        self._divisible = engine.divisible
        self._start = start
        self._keep_last = int(settings["keep_last"])
        self._keep_best = int(settings.get("keep_best", 0))
        self._with_optimizer = bool(settings.get("save_optimizer", True))
        self._pending: tuple[Path, dict[str, Any], float] | None = None

    @property
    def pending(self) -> bool:
        """Whether one is written and not published."""
        return self._pending is not None

    def begin(self, progress: Progress, *, loss: float | None) -> None:
        """Write a checkpoint beside its place; `settle` publishes it. Raises OSError where the disk is full."""
        started = time.monotonic()
        final = self.folder / f"step-{progress.step:08d}"
        part = _part(final)
        if dist.get_rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for stale in self.folder.glob(".*.part"):
                shutil.rmtree(stale)
            part.mkdir()
        dist.barrier()
        try:
            self._engine.save(part, optimizer=self._with_optimizer)
            torch.save(_random_state(), part / f"random-{dist.get_rank()}.pt")
            if dist.get_rank() == 0 and self._start.exists():
                shutil.copyfile(self._start, part / self._start.name)
        except BaseException as error:
            shutil.rmtree(part, ignore_errors=True)
            if plain := in_plain_words(error, final):
                raise plain from error
            raise
        manifest = {
            "progress": asdict(progress),
            "layout": self.layout,
            "world_size": dist.get_world_size(),
            "data": self._data,
            "loss": loss,
            "optimizer": {"divisible": self._divisible} if self._with_optimizer else None,
        }
        self._pending = (final, manifest, started)

    def settle(self, *, wait: bool) -> Saved | None:
        """Publish what was written, and delete what is older than the newest and worse than the best to keep."""
        if self._pending is None:
            return None
        (final, manifest, started), self._pending = self._pending, None
        part = _part(final)
        dist.barrier()
        written = listed(path for path in part.rglob("*") if path.is_file())
        digests = hash_files(written)
        size = 0
        if dist.get_rank() == 0:  # alone: it also takes the folder's name away
            files: dict[str, dict[str, Any]] = {
                str(path.relative_to(part)): {"sha256": digest, "bytes": path.stat().st_size}
                for path, digest in zip(written, digests, strict=True)
            }
            size = sum(int(facts["bytes"]) for facts in files.values())
            write_json(part / MANIFEST, {**manifest, "files": files})
            if final.exists():  # of the same step, but it did not verify
                shutil.rmtree(final)
            os.replace(part, final)
            for old in outdated(self.folder, last=self._keep_last, best=self._keep_best):
                shutil.rmtree(old)
        dist.barrier()
        seconds = time.monotonic() - started
        return Saved(int(manifest["progress"]["step"]), final, seconds, seconds, size)

    def load(self) -> Progress | None:
        """Restore the newest checkpoint that verifies, warning of each that does not; None where there is none.

        Raises WorkerError when the data is not what the checkpoint was trained on, or it is of other ranks and cannot
        be divided anew.
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
        if manifest["data"] != self._data:
            raise WorkerError(
                "the training data has changed since this run's checkpoint was written",
                where=str(path),
                hint="start a new run for the new data",
            )
        if manifest["layout"] != self.layout:
            self.loaded_from = manifest["layout"]
            if not (self._divisible and (manifest["optimizer"] or {"divisible": True})["divisible"]):
                raise WorkerError(
                    f"this checkpoint cannot go from {manifest['layout']} into {self.layout}",
                    where=str(path),
                    hint="go on with as many ranks as before, or use the engine fsdp with adamw",
                )
        self._engine.load(path, optimizer=manifest["optimizer"] is not None)
        own = path / f"random-{dist.get_rank()}.pt"
        if not self.loaded_from and own.is_file():
            _set_random_state(torch.load(own, weights_only=False))  # its hash was compared


def _part(final: Path) -> Path:
    return final.with_name(f".{final.name}.part")


def _random_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
