"""What a run used of what it asked for, and what to ask for next time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.plan import Plan, Stage
from launcher.record import read_json
from launcher.rundir import RunDir
from launcher.scheduler import default_state_dir, open_scheduler
from launcher.scheduler.base import Use
from launcher.states import State
from launcher.sweep import read_arrays

MEMORY_MARGIN = 1.25  # of the peak; then up to a whole GiB
TIME_MARGIN = 1.5  # of the time it took; then TIME_EXTRA_MINUTES more, up to five minutes
TIME_EXTRA_MINUTES = 3  # the signal before the end of the time limit may come so early
LEAST_MINUTES = 10
CPU_SHARE = 0.5  # fewer CPUs are proposed where less than this was used
CPU_MARGIN = 1.25
_A_DAY = 86400.0


@dataclass(frozen=True)
class StageUse:
    """What all runs of a stage's jobs used together, resubmitted ones too. None: not measured.

    Memory is per node, at most: the largest process at its peak, times the tasks of a node.
    """

    name: str
    table: str  # of the recipe, under [resources]
    state: State
    runs: int
    seconds: float
    limit_seconds: float | None
    cut_seconds: float  # in runs that did not end well
    cpus: int
    cpu_seconds: float | None
    cpu_seconds_given: float
    memory_mib: float | None
    peak_mib: float | None
    node_hours: float
    gpu_hours: float
    propose: dict[str, str | int]  # key of the table -> value for next time


def usage(plan: Plan, run_dir: Path) -> list[StageUse]:
    """The stages that have run so far. Raises NotKept where the scheduler keeps no record, SchedulerError."""
    files = RunDir(run_dir)
    ids: dict[str, list[str]] = {
        stage: [one for one in ids if one] for stage, ids in (read_json(files.jobs) or {}).items()
    }
    for array in read_arrays(files):
        if array.job_id:
            ids.setdefault(array.stage, []).append(array.job_id)
    every = sorted({job_id for of_stage in ids.values() for job_id in of_stage})
    if not every:
        return []
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir())
    used = scheduler.use(every, since=files.plan.stat().st_mtime - _A_DAY)
    found = []
    for stage in plan.stages:
        own = [use for use in used if use.job_id.partition("_")[0].partition("+")[0] in ids.get(stage.name, ())]
        if own:
            found.append(stage_use(stage, own))
    return found


def stage_use(stage: Stage, runs: Sequence[Use]) -> StageUse:
    """All runs of one stage's jobs, in their order, as one."""
    cpu = [run.cpu_seconds for run in runs if run.cpu_seconds is not None]
    peaks = [run.peak_mib for run in runs if run.peak_mib is not None]
    seconds = sum(run.seconds for run in runs)
    given = sum(run.seconds * run.cpus for run in runs)
    found = StageUse(
        name=stage.name,
        table=stage.table,
        state=runs[-1].state,
        runs=len(runs),
        seconds=seconds,
        limit_seconds=runs[-1].limit_seconds,
        cut_seconds=sum(run.seconds for run in runs if run.state.terminal and not run.state.succeeded)
        + sum(run.seconds for run in runs if run.state is State.REQUEUED),
        cpus=runs[-1].cpus,
        cpu_seconds=sum(cpu) if cpu else None,
        cpu_seconds_given=given,
        memory_mib=runs[-1].memory_mib,
        peak_mib=max(peaks, default=None),
        node_hours=sum(run.seconds * run.nodes for run in runs) / 3600,
        gpu_hours=sum(run.seconds * run.gpus for run in runs) / 3600,
        propose={},
    )
    return StageUse(**{**vars(found), "propose": dict(_proposals(stage, found, runs))})


def _proposals(stage: Stage, used: StageUse, runs: Sequence[Use]) -> Iterator[tuple[str, str | int]]:
    """(key, value) of what to ask for next time, where it differs from what was asked for."""
    need = stage.resources
    memory = None
    if used.state is State.OUT_OF_MEMORY:
        memory = 1.5 * need.memory_mib
    elif used.state.succeeded and used.peak_mib:
        memory = MEMORY_MARGIN * used.peak_mib
    if memory is not None and not need.whole_nodes and (gib := math.ceil(memory / 1024)) * 1024 != need.memory_mib:
        yield "memory", f"{gib}G"
    minutes = None
    if used.state is State.TIMEOUT:
        minutes = 2 * need.time_limit_minutes
    elif used.state.succeeded and stage.worker != "serve":  # a server runs for as long as it was told to
        longest = _longest(runs)
        minutes = max(LEAST_MINUTES, 5 * math.ceil((TIME_MARGIN * longest / 60 + TIME_EXTRA_MINUTES) / 5))
    if minutes is not None and minutes != need.time_limit_minutes:
        yield "time_limit", f"{minutes // 60}h" * bool(minutes // 60) + f"{minutes % 60}m" * bool(minutes % 60)
    share = used.cpu_seconds / used.cpu_seconds_given if used.cpu_seconds and used.cpu_seconds_given else 1.0
    if used.state.succeeded and share < CPU_SHARE and not need.gpus_per_node and need.cpus_per_task > 1:
        cpus = math.ceil(need.cpus_per_task * share * CPU_MARGIN)
        if cpus < need.cpus_per_task:
            yield "cpus_per_task", cpus


def _longest(runs: Sequence[Use]) -> float:
    """Seconds of the job that took longest with all its runs: without a stop it would have taken no longer."""
    by_job: dict[str, float] = {}
    for run in runs:
        by_job[run.job_id] = by_job.get(run.job_id, 0.0) + run.seconds
    return max(by_job.values())


def recipe_lines(stages: Sequence[StageUse]) -> list[str]:
    """Lines for a recipe with what to ask for next time; stages that share a table get the larger value."""
    tables: dict[str, dict[str, str | int]] = {}
    for stage in stages:
        table = tables.setdefault(stage.table, {})
        for key, value in stage.propose.items():
            table[key] = max(table.get(key, value), value, key=_size)
    lines: list[str] = []
    for name, table in tables.items():
        if table:
            lines += [f"[resources.{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return lines


def _size(value: str | int) -> float:
    from launcher.units import parse_mib, parse_minutes

    if isinstance(value, int):
        return value
    return parse_mib(value) if value.endswith("G") else parse_minutes(value)


def _toml(value: str | int) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'


def to_json(plan: Plan, stages: Sequence[StageUse]) -> dict[str, Any]:
    """For programs."""
    return {
        "run_id": plan.run_id,
        "stages": [{**asdict(stage), "state": stage.state.value} for stage in stages],
        "recipe": "\n".join(recipe_lines(stages)),
    }
