"""What the checkpoints of the sharded engines hold.

*.distcp, .metadata    FSDP: torch's distributed checkpoint of what is trained and the optimizer's state
zero/                  DeepSpeed: its own files, one for each rank
state.pt               one rank, with an optimizer whose state torch cannot divide
pissa.safetensors      PiSSA: what adapters began from
random-RANK.pt         random state of each rank
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.work import checkpoints
from launcher.work.sharded.engines import Engine


class Checkpoints(checkpoints.Checkpoints):
    """The checkpoints of a stage on a sharded engine.

    Where there is a file `start`, each checkpoint has it too, and so says all of the weights.
    """

    same_layout_only = "go on with as many ranks as before, or use the engine fsdp with adamw"

    def __init__(
        self, folder: Path, engine: Engine, settings: Mapping[str, Any], *, layout: str, data: str, start: Path
    ) -> None:
        super().__init__(folder, settings, layout=layout, data=data)
        self._engine = engine
        self._start = start

    def _copied(self, folder: Path) -> checkpoints.Part:
        own = _random_file(folder)
        torch.save(checkpoints.random_state(), own)
        write_state = self._engine.save(folder, optimizer=self._with_optimizer, copy=self.asynchronous)

        def write() -> Iterable[Path]:
            written = [own, *write_state()]
            if dist.get_rank() == 0 and self._start.exists():
                written.append(Path(shutil.copyfile(self._start, folder / self._start.name)))
            return written

        optimizer = {"divisible": self._engine.divisible} if self._with_optimizer else None
        return checkpoints.Part(write, lambda: None, optimizer)

    def _divisible(self, optimizer: Mapping[str, Any] | None) -> bool:
        return self._engine.divisible and (optimizer is None or bool(optimizer["divisible"]))

    def _restore(self, path: Path, manifest: Any, *, same_layout: bool) -> None:
        self._engine.load(path, optimizer=manifest["optimizer"] is not None)
        if same_layout:
            checkpoints.set_random_state(torch.load(_random_file(path), weights_only=False))  # its hash was compared


def _random_file(folder: Path) -> Path:
    return folder / f"random-{dist.get_rank()}.pt"
