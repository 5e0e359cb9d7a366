"""The training loop of the Megatron engine, with passes and updates of a sharded one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from launcher.work.checkpoints import Checkpoints
from launcher.work.context import Context
from launcher.work.megatron.batches import Batch, Stream
from launcher.work.megatron.loop import Loop
from launcher.work.megatron.objective import NextToken, Preference
from launcher.work.megatron.validation import Validation
from launcher.work.meter import Meter
from launcher.work.ranks import device
from launcher.work.sharded.engines import Engine
from launcher.work.sharded.passes import outputs


class ShardedLoop(Loop):
    """Everything that a step needs. `train_until_done` is the only entry."""

    def __init__(
        self,
        context: Context,
        engine: Engine,
        batches: Stream[Any],
        objective: NextToken | Preference,
        checkpoints: Checkpoints,
        *,
        steps: int,
        validation: Validation | None = None,
    ) -> None:
        self.engine = engine
        model: Any = engine
        super().__init__(
            context, model, engine.optimizer, batches, objective, checkpoints, steps=steps, validation=validation
        )

    def _connected(self) -> Meter:
        return Meter(self.context)

    def _forget_gradients(self) -> None:
        self.engine.zero_grad()

    def _passes(self, micro: Callable[[], Iterator[Batch]]) -> list[Any]:
        """All batches are looked at first: by how much a loss is divided is known from all of them."""
        divisor, count = torch.zeros(1, dtype=torch.float64, device=device()), 0
        for batch in micro():
            divisor += self.objective.divisor(batch)  # type: ignore[arg-type]
            count += 1
        dist.all_reduce(divisor)
        scale = dist.get_world_size() / float(divisor)  # engines take the mean over ranks
        self.engine.module.train()
        reports = []
        self.meter.computing(on=True)
        for number, batch in enumerate(micro(), 1):
            with self.engine.computing():
                out = outputs(self.engine.module, batch, scores=not self.objective.labels)
            loss, _, report = self._loss(batch, out)
            self.engine.backward(loss * scale, last=number == count)
            reports.append(report)
        self.meter.computing(on=False)
        return reports

    def _look(self, objective: NextToken | Preference, number: int) -> list[Any]:
        self.engine.module.eval()
        reports = []
        for batch in objective.begin(number)():
            with torch.no_grad(), self.engine.computing():
                out = outputs(self.engine.module, batch, scores=not objective.labels)
            _, _, report = objective.loss(batch, out)
            reports.append(report)
        return reports

    def _apply(self) -> float:
        return self.engine.step()
