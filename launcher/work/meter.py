"""What steps cost: the time by what it went into, the share of the hardware's rate, memory, and the slowest rank.

Time is read off a line of marks. On a CPU a mark is a clock; on a GPU it is an event in the compute stream, read when
the GPU has come by, so that nothing waits for it: between two marks lies what the GPU did, and making batches counts
only as far as the GPU was out of work. What the GPU had not reached when a step was reported is part of the next one.
"""

from __future__ import annotations

import contextlib
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from launcher.work.context import Context, node_name
from launcher.work.operations import training_operations

Item = TypeVar("Item")

EVERY = 10  # steps between two looks at all ranks
_WORTH_TELLING = 1e-5  # seconds of a part of a step
_MIB = 1024 * 1024
DATA, REFERENCE, SCHEDULE, EXCHANGE, UPDATE, SAVE = "data", "reference", "schedule", "exchange", "update", "save"
_FIELDS = {  # of a step's event
    DATA: "data_seconds",
    REFERENCE: "reference_seconds",
    SCHEDULE: "pipeline_seconds",
    EXCHANGE: "exchange_seconds",
    UPDATE: "optimizer_seconds",
    SAVE: "checkpoint_seconds",
}


class Meter:
    """One rank's. `phase`, `data` and `computing` bracket parts of a step, `step` sums them up; `ranks` looks at all.

    Phases may lie within each other: the inner one's time is not the outer one's. `group` numbers the ranks that do
    the same work, those of a pipeline stage: only they are compared with each other.
    """

    def __init__(self, context: Context, *, group: int = 0) -> None:
        self._ranks, self._group = context.world_size, group
        train: Mapping[str, Any] = context.options["train"]
        facts = context.plan.model
        peak = context.options.get("peak_tflops")  # of one rank's GPU; None where it is not known
        self._peak = peak * 1e12 * self._ranks if peak and facts.get("active_parameters") else None
        self._facts = facts
        self._adapters, self._scores = train["tuner"] != "full", train["method"] == "rm"
        self._line: deque[tuple[Any, str, bool]] = deque()  # a mark, and what begins there: a phase, own work or not
        self._phases = [""]
        self._computing = False
        self._spent: dict[str, float] = {}
        self._own = self._window_own = 0.0
        self._window = 0
        self._nodes: list[str] = []
        self._first = True
        self._gpu = torch.cuda.is_available()
        self._spare: list[Any] = []  # events that were read
        self.timers = _Timers(self)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done within counts for this part of the step."""
        self._phases.append(name)
        self._mark()
        try:
            yield
        finally:
            self._phases.pop()
            self._mark()

    def data(self, make: Callable[[], Iterator[Item]]) -> Callable[[], Iterator[Item]]:
        """The same batches; the time in which they are made is that of the data."""

        def made() -> Iterator[Item]:
            batches = make()
            while True:
                with self.phase(DATA):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

        return made

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function; its time is that of a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return function(*args, **kwargs)

        return call

    def computing(self, *, on: bool) -> None:
        """Here begins, or ends, work of this rank's own: it waits for no other rank of its pipeline or replicas."""
        self._computing = on
        self._mark()

    def step(self, seconds: float, trained: list[int], looked_at: list[int]) -> dict[str, float]:
        """A step of so many seconds over sequences of these lengths has ended: what there is to say of it."""
        self._read()
        spent, self._spent = self._spent, {}
        self._window_own += self._own
        self._window += 1
        self._own = 0.0
        if self._first:  # it also sets things up
            self._first, self._window_own, self._window = False, 0.0, 0
        tokens = sum(trained)
        found = {"tokens_per_second": tokens / seconds}
        if self._peak:
            work = training_operations(self._facts, trained, looked_at, adapters=self._adapters, scores=self._scores)
            found["mfu"] = work / seconds / self._peak
        found["compute_seconds"] = round(spent.pop("own", 0.0), 6)
        return found | {_FIELDS[name]: round(one, 6) for name, one in spent.items() if one >= _WORTH_TELLING}

    def ranks(self, *, now: bool = False) -> dict[str, Any] | None:
        """Every EVERY steps, or `now`: memory of the fullest rank and how far the slowest is behind its like.

        Every rank calls it after each step; all get the same. None between two looks. A rank's time is that of its
        own work, without waiting: forward and backward passes and making batches.
        """
        if not self._window or (self._window < EVERY and not now):
            return None
        if not self._nodes:
            self._nodes = _gathered(node_name())
        allocated, reserved = (
            (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()) if self._gpu else (0, 0)
        )
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        row = [self._window_own / self._window, self._group, allocated / _MIB, reserved / _MIB, resident]
        steps, self._window, self._window_own = self._window, 0, 0.0
        table = _all_rows(row)
        found: dict[str, Any] = {"steps": steps, **_memory(table, self._nodes, gpu=self._gpu)}
        if len(table) > 1:
            found |= _slowest(table, self._nodes)
        return found

    def _mark(self) -> None:
        mark: Any
        if self._gpu:
            mark = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
            mark.record()
        else:
            mark = time.perf_counter()
        self._line.append((mark, self._phases[-1], self._computing))

    def _read(self) -> None:
        """Add up the line as far as it has been passed; its last mark stays to begin the rest."""
        line, spent = self._line, self._spent
        self._mark()
        while len(line) > 1 and (not self._gpu or line[1][0].query()):
            mark, phase, computing = line.popleft()
            if self._gpu:
                seconds = mark.elapsed_time(line[0][0]) / 1000
                self._spare.append(mark)
            else:
                seconds = line[0][0] - mark
            own = phase == DATA or computing
            if own:
                self._own += seconds
            name = "own" if computing and phase == SCHEDULE else phase
            spent[name] = spent.get(name, 0.0) + seconds
        spent.pop("", None)


class _Timers:
    """Stands where Megatron-core expects its timers; of all that it brackets, the passes through the model count."""

    _PASSES = ("forward-compute", "backward-compute")

    def __init__(self, meter: Meter) -> None:
        self._pass, self._other = _Timer(meter), _Timer(None)

    def __call__(self, name: str, log_level: int = 0) -> _Timer:
        return self._pass if name in self._PASSES else self._other


class _Timer:
    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter

    def start(self, barrier: bool = False) -> None:
        if self._meter is not None:
            self._meter.computing(on=True)

    def stop(self, barrier: bool = False) -> None:
        if self._meter is not None:
            self._meter.computing(on=False)


def _gathered(value: str) -> list[str]:
    """Every rank's value."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def _all_rows(row: list[float]) -> list[list[float]]:
    """Every rank's row."""
    if not dist.is_initialized():
        return [row]
    table = torch.zeros(dist.get_world_size(), len(row), dtype=torch.float64)
    table[dist.get_rank()] = torch.tensor(row, dtype=torch.float64)
    table = table.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(table)
    rows: list[list[float]] = table.tolist()
    return rows


def _memory(table: list[list[float]], nodes: list[str], *, gpu: bool) -> dict[str, Any]:
    """Peaks since the attempt began, in MiB: what PyTorch has taken of the fullest GPU, and the largest process."""
    fullest = max(range(len(table)), key=lambda rank: table[rank][3 if gpu else 4])
    found: dict[str, Any] = {"memory_rank": fullest, "memory_node": nodes[fullest]}
    if gpu:
        found["allocated_mib"] = round(max(row[2] for row in table))
        found["reserved_mib"] = round(table[fullest][3])
    found["resident_mib"] = round(max(row[4] for row in table))
    return found


def _slowest(table: list[list[float]], nodes: list[str]) -> dict[str, Any]:
    """The rank that is slowest beside the usual one of its group, or of all where it is alone in it.

    The usual one is the lower median: of two ranks the faster one.
    """
    own, groups = [row[0] for row in table], [row[1] for row in table]

    def usual(rank: int) -> float:
        like = [seconds for seconds, group in zip(own, groups, strict=True) if group == groups[rank]]
        return statistics.median_low(like if len(like) > 1 else own)

    slowdown = [seconds / usual(rank) if usual(rank) > 0 else 1.0 for rank, seconds in enumerate(own)]
    rank = max(range(len(own)), key=slowdown.__getitem__)
    return {
        "slow_rank": rank,
        "slow_node": nodes[rank],
        "slow_seconds": round(own[rank], 6),
        "usual_seconds": round(usual(rank), 6),
        "slowdown": round(slowdown[rank], 4),
    }
