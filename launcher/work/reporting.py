"""What is told of every step, by any engine: its event, points for the trackers, ranks that are slow, loss spikes.

Every rank has one `Reports` and calls it alike, since some of it looks at all ranks; the main rank writes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.record import read_events
from launcher.work.context import Context
from launcher.work.meter import Meter
from launcher.work.spikes import LOSS, NORM, WINDOW, Spikes, named
from launcher.work.tracking import Tracking

STOP = "stop"
_NAMES = {LOSS: "loss", NORM: "gradient's norm"}


class Reports:
    """The reports of one attempt, which begins after step `resumed`; a context that ends with it."""

    def __init__(self, context: Context, meter: Meter, *, resumed: int, steps: int) -> None:
        train: Mapping[str, Any] = context.options["train"]
        self._context, self._meter, self._steps = context, meter, steps
        self._tracking = Tracking(context, resumed)
        self._spikes = Spikes(float(train.get("spike_factor", 0.0)), clip=float(train.get("gradient_clip", 0.0)))
        self._stop = train.get("on_spike") == STOP
        earlier, self._accepted = _earlier(context, resumed)
        for figure, values in earlier.items():
            for value in values:
                self._spikes.look(figure, value)
        self._mfu_seconds = self._seconds = 0.0
        self._spiked = 0
        self._peak: float | None = None
        # step -> figures of what is not trained on, of this attempt
        self.validated: dict[int, Mapping[str, float]] = {}

    def __enter__(self) -> Reports:
        self._tracking.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self._tracking.__exit__(*how)

    def step(
        self,
        step: int,
        figures: Mapping[str, float],
        *,
        seconds: float,
        trained: list[int],
        looked_at: Sequence[int] = (),
        last: bool,
    ) -> None:
        """Step number `step` (from 1) is done. Lengths are those of the sequences of the global batch, in tokens;
        `last` is the last one of this attempt."""
        told = {**figures, **self._meter.step(seconds, trained, list(looked_at))}
        if self._context.is_main:
            self._context.event("step", step=step, steps=self._steps, seconds=seconds, **told)
            self._tracking.add("step", step, {"seconds": seconds, **told})
        if "mfu" in told:
            self._mfu_seconds += told["mfu"] * seconds
            self._seconds += seconds
        ranks = self._meter.ranks(now=last)
        if ranks:
            self._peak = ranks.get("reserved_mib") or ranks["resident_mib"]
        if ranks and self._context.is_main:
            self._context.event("ranks", step=step, **ranks)
            self._tracking.add("ranks", step, ranks)

    def validation(self, step: int, figures: Mapping[str, float], *, samples: int, seconds: float) -> None:
        """After a step, figures of so many samples that are not trained on, their mean loss among them."""
        self.validated[step] = figures
        told = {**figures, "samples": samples, "seconds": seconds}
        if self._context.is_main:
            self._context.event("validation", step=step, steps=self._steps, **told)
            self._tracking.add("validation", step, told)

    def figures(self) -> dict[str, float]:
        """For the stage's result: newest validation loss and accuracy, mean MFU, memory of the fullest rank and number
        of spikes, of this attempt."""
        found: dict[str, float] = {"spikes": self._spiked}
        if self.validated:
            newest = self.validated[max(self.validated)]
            found["validation_loss"] = newest["loss"]
            if "rewards/accuracies" in newest:
                found["validation_accuracy"] = newest["rewards/accuracies"]
        if self._seconds:
            found["mfu"] = self._mfu_seconds / self._seconds
        if self._peak:
            found["peak_memory_mib"] = self._peak
        return found

    def judge(
        self, step: int, figure: str, value: float, samples: Callable[[], list[str]], checkpoint: Callable[[], str]
    ) -> None:
        """Look at the loss or the gradient norm of a step, the same on all ranks; raises WorkerError to stop there.

        What is no number stops training, a spike does where `on_spike` says so, unless an earlier attempt stopped at
        this one: that a person resumed it is the answer. `samples` names those of the batch, the worst first, and
        `checkpoint` the newest one that is whole; both are called by every rank or by none.
        """
        if not math.isfinite(value):
            ids, good = samples(), checkpoint()
            self._tell(step, figure, value, ids)
            raise WorkerError(
                f"the {_NAMES[figure]} is {value} in step {step}; samples: {named(ids)}; {good}",
                where="train",
                hint="look at these samples; or lower learning_rate, or lengthen warmup_steps",
            )
        spike = self._spikes.look(figure, value)
        if spike is None:
            return
        self._spiked += 1
        ids, good = samples(), checkpoint()
        stops = self._stop and step not in self._accepted
        self._tell(step, figure, value, ids, usual=spike.usual, limit=spike.limit, stops=stops)
        if not stops:
            if self._context.is_main:
                print(f"warning: {spike.text} in step {step}; samples: {named(ids)}", flush=True)
            return
        run = self._context.plan.run_id
        raise WorkerError(
            f"{spike.text} in step {step}; samples, those with the highest loss first: {named(ids)}; {good}",
            where="train.on_spike",
            hint=f"look at these samples; `swiftlaunch resume {run}` goes on from there and past this step, with "
            "`--set train.on_spike=warn` past all; for other data or a lower learning_rate start a new run",
        )

    def _tell(self, step: int, figure: str, value: float, ids: Sequence[str], **more: Any) -> None:
        if self._context.is_main:
            self._context.event("spike", step=step, figure=figure, value=value, samples=list(ids), **more)


def _earlier(context: Context, resumed: int) -> tuple[dict[str, list[float]], set[int]]:
    """From earlier attempts, the same on every rank: losses and norms of the steps before this attempt begins, and the
    steps at which one has stopped for a spike."""
    found: list[Any] = [{}, []]
    if context.is_main and context.attempt > 1:
        events = read_events(context.files.events, stage=context.stage.name, edge_bytes=128 * 1024)
        events = [event for event in events if event["attempt"] < context.attempt]
        steps = {int(event["step"]): event for event in events if event["kind"] == "step" and event["step"] <= resumed}
        newest = [steps[step] for step in sorted(steps)[-WINDOW:]]
        usual = {name: [event[name] for event in newest if event.get(name) is not None] for name in (LOSS, NORM)}
        found = [usual, [int(event["step"]) for event in events if event["kind"] == "spike" and event.get("stops")]]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return found[0], set(found[1])
