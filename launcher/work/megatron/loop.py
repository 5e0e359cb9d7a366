"""The training loop: reads top to bottom, one optimizer step at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from launcher.record import read_events
from launcher.work.checkpoints import Checkpoints, Progress
from launcher.work.context import Context, Requeue
from launcher.work.kept import published
from launcher.work.megatron.batches import Batch, Stream
from launcher.work.megatron.forward import forward_backward, reports_alone
from launcher.work.megatron.model import Model
from launcher.work.megatron.objective import NextToken, Preference
from launcher.work.megatron.optimizer import set_rates
from launcher.work.megatron.validation import Validation
from launcher.work.meter import EXCHANGE, REFERENCE, SAVE, SCHEDULE, UPDATE, Meter
from launcher.work.ranks import device
from launcher.work.reporting import Reports
from launcher.work.spikes import LOSS, NORM, worst_first

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
        validation: Validation | None = None,
    ) -> None:
        self.context = context
        self.train: Mapping[str, Any] = context.options["train"]
        self.model, self.optimizer = model, optimizer
        self.batches, self.objective, self.checkpoints = batches, objective, checkpoints
        self.steps, self.validation = steps, validation
        self.every = int(self.train["checkpoint"]["every_steps"])
        self.longest_step, self.longest_look, self.longest_save = 0.0, 0.0, _UNKNOWN_SAVE_SECONDS
        self.since_save: list[float] = []  # losses of the steps since the last checkpoint
        self.seen: list[tuple[list[str], Any, Any]] = []  # of this step's micro-batches: samples, loss, divisor
        self.meter = self._connected()

    def _connected(self) -> Meter:
        """Tell Megatron-core what it has to know of this loop; the meter that it reports to."""
        from megatron.core import parallel_state
        from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator

        meter = Meter(self.context, group=parallel_state.get_pipeline_model_parallel_rank())
        config, batches = self.model.config, self.batches
        config.timers = meter.timers
        config.finalize_model_grads_func = meter.timed(EXCHANGE, config.finalize_model_grads_func)
        config.grad_scale_func = self.optimizer.scale_loss
        init_num_microbatches_calculator(
            self.context.rank, None, batches.global_batch_size, batches.micro_batch_size, batches.replicas
        )
        return meter

    def train_until_done(self, progress: Progress) -> Progress:
        """Train from `progress` to the last step.

        Raises Requeue after a stop, WorkerError for a loss of NaN or a spike.
        """
        with Reports(self.context, self.meter, resumed=progress.step, steps=self.steps) as self.reports:
            return self._train(progress)

    def _train(self, progress: Progress) -> Progress:
        first = progress.step
        self.longest_save = self._earlier_save()
        self.context.watchdog.expect_steps()
        while progress.step < self.steps:
            self._settle(wait=False)
            started = time.monotonic()
            rate = set_rates(self.optimizer, self.train, progress.step, self.steps)
            figures, stop = self._forward_backward(progress.step)
            norm = self._update(progress.step)
            seconds = time.monotonic() - started
            if progress.step > first:  # the first one also sets things up
                self.longest_step = max(self.longest_step, seconds)
            trained, looked_at = self.objective.lengths(progress.step)
            progress = Progress(
                progress.step + 1, progress.tokens + sum(trained), progress.seconds + seconds, figures["loss"]
            )
            last = stop or progress.step == self.steps
            self.reports.step(
                progress.step,
                {**figures, "grad_norm": norm, "learning_rate": rate},
                seconds=seconds,
                trained=trained,
                looked_at=looked_at,
                last=last,
            )
            self.context.watchdog.beat(progress.step, self.steps)
            self.since_save.append(progress.loss)
            if not stop:
                self._validate(progress.step)
            if last or progress.step % self.every == 0:
                self._save(progress, wait=last)
            if stop and progress.step < self.steps:
                raise Requeue(f"stopped after step {progress.step} of {self.steps}")
        return progress

    def _forward_backward(self, step: int) -> tuple[dict[str, float], bool]:
        """Loss and figures of the global batch, and whether any rank was asked to stop. Gradients are left in place."""
        objective = self.objective
        self.seen.clear()
        with self.meter.phase(UPDATE):
            self._forget_gradients()
        with self.meter.phase(REFERENCE):
            micro = objective.begin(step)
        with self.meter.phase(SCHEDULE):
            reports = self._passes(self.meter.data(micro))
        stops = torch.tensor([float(self.context.stop_requested or self._time_is_up())], dtype=torch.float64)
        totals = torch.cat([_summed(objective, reports if reports_alone() else []), stops]).to(device())
        with self.meter.phase(EXCHANGE):
            dist.all_reduce(totals)
        *sums, stop = totals.tolist()
        figures = _figures(objective, sums)
        self._judge(step, LOSS, figures["loss"])
        return figures, bool(stop)

    def _forget_gradients(self) -> None:
        for chunk in self.model.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()

    def _passes(self, micro: Callable[[], Iterator[Batch]]) -> list[Any]:
        """Forward and backward passes of a step's micro-batches; the reports of their losses."""
        return forward_backward(
            self.model.chunks,
            micro,
            self._loss,
            count=self.batches.micro_batches,
            sequences=self.batches.micro_batch_size * self.objective.sequences,
            length=self.batches.sequence_length,
            labels=self.objective.labels,
        )

    def _validate(self, step: int) -> None:
        """Look at the rows that are not trained on, where this is the step for it."""
        found = self.validation
        if found is None or not found.held_out.due(step, last=step == self.steps):
            return
        started = time.monotonic()
        self._settle(wait=False)
        objective = found.objective
        with self.context.watchdog.unhurried():
            reports = [report for number in range(found.held_out.looks) for report in self._look(objective, number)]
            totals = _summed(objective, reports).to(device())
            dist.all_reduce(totals)
        sums = totals.tolist()
        seconds = time.monotonic() - started
        self.longest_look = max(self.longest_look, seconds)
        figures = {**_figures(objective, sums), objective.unit: int(sums[1])}
        self.reports.validation(step, figures, samples=found.held_out.samples, seconds=seconds)

    def _look(self, objective: NextToken | Preference, number: int) -> list[Any]:
        """Reports of one global batch that is not trained on, on the ranks whose reports count."""
        chunks, batches = self.model.chunks, objective.batches
        for chunk in chunks:
            chunk.eval()
        reports = forward_backward(
            chunks,
            objective.begin(number),
            objective.loss,
            count=batches.micro_batches,
            sequences=batches.micro_batch_size * objective.sequences,
            length=batches.sequence_length,
            labels=objective.labels,
            forward_only=True,
        )
        for chunk in chunks:
            chunk.train()
        return reports if reports_alone() else []

    def _loss(self, batch: Batch, out: Any) -> tuple[Any, Any, Any]:
        """The objective's, remembered for the case that a sample has to be named."""
        loss, divisor, report = self.objective.loss(batch, out)
        self.seen.append((batch.ids, loss.detach(), divisor))
        return loss, divisor, report

    def _update(self, step: int) -> float:
        """Clip and apply the gradients; returns their norm before clipping."""
        with self.meter.phase(UPDATE):
            norm = self._apply()
        self._judge(step, NORM, norm)
        return norm

    def _apply(self) -> float:
        _, norm, _ = self.optimizer.step()
        return math.nan if norm is None else float(norm)

    def _judge(self, step: int, figure: str, value: float) -> None:
        """Stop here where there is reason to. All ranks see the same value."""
        self.reports.judge(step + 1, figure, value, self._samples, self._newest_checkpoint)

    def _samples(self) -> list[str]:
        """Those of this step, the ones with the highest loss first."""
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, [(ids, float(loss), float(divisor)) for ids, loss, divisor in self.seen])
        return worst_first([seen for part in parts for seen in part])

    def _newest_checkpoint(self) -> str:
        """In words; one that is being written is waited for: what was good before is kept."""
        self._settle(wait=True)
        found = published(self.checkpoints.folder)
        return f"the newest checkpoint is {found[-1].name}" if found else "there is no checkpoint yet"

    def _time_is_up(self) -> bool:
        """On the main rank: whether the job would end before one more step is done and saved."""
        if not self.context.is_main:
            return False
        saves = 1 + self.checkpoints.pending  # the one that is being written comes first
        step_seconds = self.longest_step + self.longest_look
        return self.context.time_is_up(step_seconds=step_seconds, save_seconds=saves * self.longest_save)

    def _earlier_save(self) -> float:
        """The longest save of earlier attempts, in seconds; without one a guess."""
        if not self.context.is_main:
            return 0.0
        events = read_events(self.context.files.events, stage=self.context.stage.name, edge_bytes=64 * 1024)
        saves = [float(event["seconds"]) for event in events if event["kind"] == "checkpoint"]
        return max(saves, default=_UNKNOWN_SAVE_SECONDS)

    def _save(self, progress: Progress, *, wait: bool) -> None:
        """Save beside the steps that follow; with `wait` it is done on return."""
        self._settle(wait=True)
        loss: float | None = sum(self.since_save) / len(self.since_save)
        if self.validation is not None:
            loss = self.reports.validated.get(progress.step, {}).get("loss")
        with self.context.watchdog.unhurried(), self.meter.phase(SAVE):
            self.checkpoints.begin(progress, loss=loss)
        self.since_save.clear()
        if wait or not self.checkpoints.asynchronous:
            self._settle(wait=True)

    def _settle(self, *, wait: bool) -> None:
        """Publish the checkpoint that is being written, if there is one and all ranks are done or are waited for."""
        if not self.checkpoints.pending:
            return
        with self.context.watchdog.unhurried(), self.meter.phase(SAVE):
            saved = self.checkpoints.settle(wait=wait)
        if saved and self.context.is_main:
            self.longest_save = max(self.longest_save, saved.seconds)
            self.context.saved()
            self.context.event("checkpoint", **{**saved._asdict(), "path": str(saved.path)})


def _summed(objective: NextToken | Preference, reports: Sequence[Any]) -> Any:
    """Sums of the micro-batches' reports: loss, what it is divided by, sums of figures, how often each counts."""
    totals = torch.zeros(2 + 2 * len(objective.figures), dtype=torch.float64)
    for report in reports:
        totals += report.double().cpu()
    return totals


def _figures(objective: NextToken | Preference, sums: Sequence[float]) -> dict[str, float]:
    """Means from the sums of all ranks; a figure of which a batch has nothing is left out."""
    loss, divisor, *rest = sums
    half = len(objective.figures)
    counted = zip(objective.figures, rest[:half], rest[half:], strict=True)
    return {"loss": loss / divisor, **{name: total / count for name, total, count in counted if count}}
