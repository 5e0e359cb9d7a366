"""The training loop: reads top to bottom, one optimizer step at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.record import read_events
from launcher.work.context import Context, Requeue
from launcher.work.megatron.batches import Batch, Stream
from launcher.work.megatron.checkpoint import Checkpoints, Progress
from launcher.work.megatron.forward import forward_backward, reports_alone
from launcher.work.megatron.model import Model
from launcher.work.megatron.objective import NextToken, Preference
from launcher.work.megatron.optimizer import set_rates
from launcher.work.ranks import device

_UNKNOWN_SAVE_SECONDS = 60.0  # until a checkpoint was written


class Loop:
    """Everything that a step needs. `train_until_done` is the only entry."""

    def __init__(
        self,
        context: Context,
        model: Model,
        optimizer: Any,
        batches: Stream[Any],
        objective: NextToken | Preference,
        checkpoints: Checkpoints,
        *,
        steps: int,
    ) -> None:
        from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator

        self.context = context
        self.train: Mapping[str, Any] = context.options["train"]
        self.model, self.optimizer = model, optimizer
        self.batches, self.objective, self.checkpoints = batches, objective, checkpoints
        self.steps = steps
        self.every = int(self.train["checkpoint"]["every_steps"])
        self.longest_step, self.longest_save = 0.0, _UNKNOWN_SAVE_SECONDS
        self.non_finite: list[str] = []  # ids of this rank's samples whose loss was not a number
        model.config.grad_scale_func = optimizer.scale_loss
        init_num_microbatches_calculator(
            context.rank, None, batches.global_batch_size, batches.micro_batch_size, batches.replicas
        )

    def train_until_done(self, progress: Progress) -> Progress:
        """Train from `progress` to the last step. Raises Requeue after a stop, WorkerError for a loss of NaN."""
        board = self._tensorboard(progress.step)
        saved = first = progress.step
        self.longest_save = self._earlier_save()
        self.context.watchdog.expect_steps()
        while progress.step < self.steps:
            started = time.monotonic()
            rate = set_rates(self.optimizer, self.train, progress.step, self.steps)
            figures, stop = self._forward_backward(progress.step)
            norm = self._update(progress.step)
            seconds = time.monotonic() - started
            if progress.step > first:  # the first one also sets things up
                self.longest_step = max(self.longest_step, seconds)
            tokens = sum(sample.length for sample in self.batches.of_step(progress.step))
            progress = Progress(
                progress.step + 1, progress.tokens + tokens, progress.seconds + seconds, figures["loss"]
            )
            if self.context.is_main:
                self._report(board, progress, figures, norm=norm, rate=rate, tokens=tokens, seconds=seconds)
            self.context.watchdog.beat(progress.step, self.steps)
            if stop or progress.step % self.every == 0 or progress.step == self.steps:
                self._save(progress)
                saved = progress.step
            if stop and progress.step < self.steps:
                raise Requeue(f"stopped after step {saved} of {self.steps}")
        if board is not None:
            board.close()
        return progress

    def _forward_backward(self, step: int) -> tuple[dict[str, float], bool]:
        """Loss and figures of the global batch, and whether any rank was asked to stop. Gradients are left in place."""
        objective, chunks = self.objective, self.model.chunks
        for chunk in chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = forward_backward(
            chunks,
            objective.begin(step),
            self._loss,
            count=self.batches.micro_batches,
            sequences=self.batches.micro_batch_size * objective.sequences,
            length=self.batches.sequence_length,
            labels=objective.labels,
        )
        # [loss, what it is divided by, sums of figures, how often each counts, stops]
        totals = torch.zeros(3 + 2 * len(objective.figures), dtype=torch.float64)
        if reports_alone():
            for report in reports:
                totals[:-1] += report.double().cpu()
        totals[-1] = float(self.context.stop_requested or self._time_is_up())
        totals = totals.to(device())
        dist.all_reduce(totals)
        loss, divisor, *sums, stops = totals.tolist()
        figures = {"loss": loss / divisor}
        if not math.isfinite(figures["loss"]):
            self._refuse(step, f"the loss is {figures['loss']}", ids=self._gathered_ids())
        half = len(objective.figures)
        for name, total, count in zip(objective.figures, sums[:half], sums[half:], strict=True):
            if count:  # a batch may hold no answer of a kind
                figures[name] = total / count
        return figures, bool(stops)

    def _loss(self, batch: Batch, out: Any) -> tuple[Any, Any, Any]:
        """The objective's; samples whose loss is not a number are remembered."""
        loss, divisor, report = self.objective.loss(batch, out)
        if not torch.isfinite(loss.detach()):
            self.non_finite += batch.ids
        return loss, divisor, report

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

    def _time_is_up(self) -> bool:
        """On the main rank: whether the job would end before one more step is done and saved."""
        if not self.context.is_main:
            return False
        return self.context.time_is_up(step_seconds=self.longest_step, save_seconds=self.longest_save)

    def _earlier_save(self) -> float:
        """The longest save of earlier attempts, in seconds; without one a guess."""
        if not self.context.is_main:
            return 0.0
        events = read_events(self.context.files.events, stage=self.context.stage.name, edge_bytes=64 * 1024)
        saves = [float(event["seconds"]) for event in events if event["kind"] == "checkpoint"]
        return max(saves, default=_UNKNOWN_SAVE_SECONDS)

    def _save(self, progress: Progress) -> None:
        started = time.monotonic()
        with self.context.watchdog.unhurried():
            path = self.checkpoints.save(progress)
        if self.context.is_main:
            self.longest_save = max(self.longest_save, time.monotonic() - started)
            self.context.saved()
            self.context.event("checkpoint", step=progress.step, path=str(path), seconds=time.monotonic() - started)

    def _tensorboard(self, step: int) -> Any:
        """A writer on the main rank, where it is wanted; points of a lost attempt after `step` are hidden."""
        if not self.context.is_main or not self.context.options.get("tracking", {}).get("tensorboard"):
            return None
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.context.files.tensorboard), purge_step=step + 1)

    def _report(
        self,
        board: Any,
        progress: Progress,
        figures: Mapping[str, float],
        *,
        norm: float,
        rate: float,
        tokens: int,
        seconds: float,
    ) -> None:
        figures = {
            **figures,
            "grad_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": tokens / seconds,
        }
        self.context.event("step", step=progress.step, steps=self.steps, seconds=seconds, **figures)
        if board is not None:
            for name, value in figures.items():
                board.add_scalar(f"train/{name}", value, progress.step)
            board.flush()
