"""The training loop: reads top to bottom, one optimizer step at a time."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.work.context import Context, Requeue
from launcher.work.megatron.batches import Batch, Batches
from launcher.work.megatron.checkpoint import Checkpoints, Progress
from launcher.work.megatron.model import Model
from launcher.work.megatron.optimizer import set_rates


class Loop:
    """Everything that a step needs. `train_until_done` is the only entry."""

    def __init__(
        self,
        context: Context,
        model: Model,
        optimizer: Any,
        batches: Batches,
        checkpoints: Checkpoints,
        *,
        steps: int,
    ) -> None:
        from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator

        self.context = context
        self.train: Mapping[str, Any] = context.options["train"]
        self.model, self.optimizer = model, optimizer
        self.batches, self.checkpoints = batches, checkpoints
        self.steps = steps
        self.every = int(self.train["checkpoint"]["every_steps"])
        self.non_finite: list[str] = []  # ids of this rank's samples whose loss was not a number
        model.config.grad_scale_func = optimizer.scale_loss
        init_num_microbatches_calculator(
            context.rank, None, batches.global_batch_size, batches.micro_batch_size, batches.replicas
        )

    def train_until_done(self, progress: Progress) -> Progress:
        """Train from `progress` to the last step. Raises Requeue after a stop, WorkerError for a loss of NaN."""
        board = self._tensorboard(progress.step)
        saved = progress.step
        while progress.step < self.steps:
            started = time.monotonic()
            rate = set_rates(self.optimizer, self.train, progress.step, self.steps)
            loss, stop = self._forward_backward(progress.step)
            norm = self._update(progress.step)
            seconds = time.monotonic() - started
            tokens = sum(len(sample.tokens) - 1 for sample in self.batches.of_step(progress.step))
            progress = Progress(progress.step + 1, progress.tokens + tokens, progress.seconds + seconds, loss)
            if self.context.is_main:
                self._report(board, progress, norm=norm, rate=rate, tokens=tokens, seconds=seconds)
            if stop or progress.step % self.every == 0 or progress.step == self.steps:
                self._save(progress)
                saved = progress.step
            if stop and progress.step < self.steps:
                raise Requeue(f"stopped after step {saved} of {self.steps}")
        if board is not None:
            board.close()
        return progress

    def _forward_backward(self, step: int) -> tuple[float, bool]:
        """Loss per token of the global batch, and whether any rank was asked to stop. Gradients are left in place."""
        from megatron.core import parallel_state
        from megatron.core.pipeline_parallel import get_forward_backward_func

        chunks = self.model.chunks
        for chunk in chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        iterators = [self.batches.micro(step) for _ in chunks]
        reports = get_forward_backward_func()(
            forward_step_func=self._forward,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=self.batches.micro_batches,
            seq_length=self.batches.sequence_length,
            micro_batch_size=self.batches.micro_batch_size,
            forward_only=False,
        )
        # [loss, tokens, stops]: every part of the loss is counted once, on the last stage's first tensor rank
        totals = torch.zeros(3, dtype=torch.float64)
        if (
            parallel_state.is_pipeline_last_stage(ignore_virtual=True)
            and parallel_state.get_tensor_model_parallel_rank() == 0
        ):
            for report in reports:
                totals[:2] += report["loss"].double().cpu()
        totals[2] = float(self.context.stop_requested)
        totals = totals.to("cuda")
        dist.all_reduce(totals)
        loss = float(totals[0] / totals[1])
        if not math.isfinite(loss):
            self._refuse(step, f"the loss is {loss}", ids=self._gathered_ids())
        return loss, bool(totals[2])

    def _forward(self, iterator: Iterator[Batch], chunk: Any) -> tuple[Any, Any]:
        """One micro-batch through one chunk; Megatron-core calls the returned function on the last stage only."""
        batch = next(iterator)
        out = chunk(input_ids=batch.tokens, position_ids=batch.positions, attention_mask=None, labels=batch.labels)
        return out, functools.partial(self._loss, batch)

    def _loss(self, batch: Batch, losses: Any) -> tuple[Any, Any, dict[str, Any]]:
        """The summed loss, the tokens that it is over, and both for the report. `losses` is [sequences, tokens]."""
        loss = (losses.float() * batch.loss_mask).sum()
        tokens = batch.loss_mask.sum()
        if not torch.isfinite(loss.detach()):
            self.non_finite += batch.ids
        return loss, tokens.to(torch.int), {"loss": torch.stack([loss.detach(), tokens])}

    def _update(self, step: int) -> float:
        """Clip and apply the gradients; returns their norm before clipping."""
        _, norm, _ = self.optimizer.step()
        if norm is None or not math.isfinite(norm):
            ids = [sample.id for sample in self.batches.of_step(step)]
            self._refuse(step, f"the gradient's norm is {norm}", ids=ids)
        return float(norm)

    def _gathered_ids(self) -> list[str]:
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self.non_finite)
        return sorted({name for part in parts for name in part})

    def _refuse(self, step: int, what: str, *, ids: list[str]) -> None:
        raise WorkerError(
            f"{what} in step {step + 1}; samples: {', '.join(ids)}",
            where="train",
            hint="look at these samples; or lower learning_rate, or lengthen warmup_steps",
        )

    def _save(self, progress: Progress) -> None:
        started = time.monotonic()
        path = self.checkpoints.save(progress)
        if self.context.is_main:
            self.context.event("checkpoint", step=progress.step, path=str(path), seconds=time.monotonic() - started)

    def _tensorboard(self, step: int) -> Any:
        """A writer on the main rank, where it is wanted; points of a lost attempt after `step` are hidden."""
        if not self.context.is_main or not self.context.options.get("tracking", {}).get("tensorboard"):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.context.files.tensorboard), purge_step=step + 1)

    def _report(self, board: Any, progress: Progress, *, norm: float, rate: float, tokens: int, seconds: float) -> None:
        figures = {
            "loss": progress.loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
        }
        self.context.event("step", step=progress.step, steps=self.steps, seconds=seconds, **figures)
        if board is not None:
            for name, value in figures.items():
                board.add_scalar(f"train/{name}", value, progress.step)
            board.flush()
