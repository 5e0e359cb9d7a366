"""What a sharded engine saves is what was there when the save began, whatever training does before it is written.

copy_checks.py PLAN, each rank of the plan's train stage. Twice: the second copy goes into memory that is there already.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.plan import from_json
from launcher.work import ranks
from launcher.work.context import from_environment
from launcher.work.ending import end_process
from launcher.work.sharded import engines, process
from launcher.work.sharded.model import build


def main(plan: str) -> None:
    context = from_environment(from_json(Path(plan).read_text()), "train", os.environ)
    train = context.options["train"]
    process.join(context, train)
    with engines.loading(train, micro_batches=1):
        model = build(Path(context.options["model"]["path"]), train)
    engine = engines.start(model, train, micro_batches=1)
    _step(engine)  # optimizers make their state
    for number in range(2):
        folder = context.files.root / f"saved-{number}"
        folder.mkdir(exist_ok=True)
        before = _state(engine)
        write = engine.save(folder, optimizer=True, copy=True)
        _step(engine)
        _step(engine)
        assert not _equal(_state(engine), before), "training has gone on"
        written = write()
        assert written
        assert all(path.is_file() for path in written), written
        dist.barrier()
        engine.load(folder, optimizer=True)
        assert _equal(_state(engine), before), "what was saved is what was there then"
    print("the same")
    ranks.leave()


def _step(engine: engines.Engine) -> None:
    engine.module.train()
    engine.zero_grad()
    with engine.computing():
        logits = engine.module(input_ids=torch.arange(12).view(1, 12)).logits
    engine.backward(logits.float().square().mean(), last=True)
    engine.step()


def _state(engine: engines.Engine) -> list[torch.Tensor]:
    """Copies of the trained weights, whole, and of this rank's part of the optimizer's state."""
    return [*engine.weights().values(), *(part.clone() for part in _tensors(engine.optimizer.state_dict()))]


def _tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [getattr(state, "_local_tensor", state)]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    assert len(one) == len(other) > 0
    return all(torch.equal(mine, its) for mine, its in zip(one, other, strict=True))


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    end_process(0)
