"""What a run used of what it asked for, and what to ask for next time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.plan import Plan, Stage
from launcher.record import read_json
from launcher.rundir import RunDir
from launcher.scheduler import default_state_dir, open_scheduler
from launcher.scheduler.base import Use
from launcher.states import State
from launcher.sweep import read_arrays
from launcher.units import SECONDS_PER_DAY

MEMORY_MARGIN = 1.25  # of the peak; then up to a whole GiB
TIME_MARGIN = 1.5  # of the time it took; then TIME_EXTRA_MINUTES more, up to five minutes
TIME_EXTRA_MINUTES = 3  # the signal before the end of the time limit may come so early
LEAST_MINUTES = 10
CPU_SHARE = 0.5  # fewer CPUs are proposed where less than this was used
CPU_MARGIN = 1.25
_KEYS = ("memory", "time_limit", "cpus_per_task")


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
    asked: dict[str, int]  # memory in MiB, time_limit in minutes, cpus_per_task
    needs: dict[str, int]  # the same for next time, what is known of it


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
    used = scheduler.use(every, since=files.plan.stat().st_mtime - SECONDS_PER_DAY)
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
        asked={
            "memory": stage.resources.memory_mib,
            "time_limit": stage.resources.time_limit_minutes,
            "cpus_per_task": stage.resources.cpus_per_task,
        },
        needs={},
    )
    return replace(found, needs=dict(_needs(stage, found, runs)))


def _needs(stage: Stage, used: StageUse, runs: Sequence[Use]) -> Iterator[tuple[str, int]]:
    """What to ask for next time, as far as it can be told: memory in MiB, time_limit in minutes, cpus_per_task."""
    need = stage.resources
    if used.state is State.OUT_OF_MEMORY and not need.whole_nodes:
        yield "memory", 1024 * math.ceil(1.5 * need.memory_mib / 1024)
    elif used.state.succeeded and used.peak_mib and not need.whole_nodes:
        yield "memory", 1024 * math.ceil(MEMORY_MARGIN * used.peak_mib / 1024)
    if used.state is State.TIMEOUT:
        yield "time_limit", 2 * need.time_limit_minutes
    elif used.state.succeeded and stage.worker != "serve":  # a server runs for as long as it was told to
        minutes = TIME_MARGIN * _longest(runs) / 60 + TIME_EXTRA_MINUTES
        yield "time_limit", max(LEAST_MINUTES, 5 * math.ceil(minutes / 5))
    if used.state.succeeded and used.cpu_seconds and used.cpu_seconds_given and not need.gpus_per_node:
        share = used.cpu_seconds / used.cpu_seconds_given
        few = math.ceil(need.cpus_per_task * share * CPU_MARGIN)
        yield "cpus_per_task", few if share < CPU_SHARE else need.cpus_per_task


def _longest(runs: Sequence[Use]) -> float:
    """Seconds of the job that took longest with all its runs: without a stop it would have taken no longer."""
    by_job: dict[str, float] = {}
    for run in runs:
        by_job[run.job_id] = by_job.get(run.job_id, 0.0) + run.seconds
    return max(by_job.values())


def recipe_lines(stages: Sequence[StageUse]) -> list[str]:
    """Lines for a recipe with what to ask for next time.

    Stages that share a table get the largest value, and none that is less than was asked for where it is not known
    what one of them needs.
    """
    lines: list[str] = []
    for table in dict.fromkeys(stage.table for stage in stages):
        sharing = [stage for stage in stages if stage.table == table]
        found = []
        for key in _KEYS:
            known = [stage.needs[key] for stage in sharing if key in stage.needs]
            asked = max(stage.asked[key] for stage in sharing)
            most = max(known, default=asked)
            if most > asked or (most < asked and len(known) == len(sharing)):
                found.append(f"{key} = {_toml(key, most)}")
        lines += [f"[resources.{table}]", *found] if found else []
    return lines


def _toml(key: str, value: int) -> str:
    if key == "memory":
        return f'"{value // 1024}G"'
    if key == "time_limit":
        return f'"{value // 60}h{value % 60}m"'.replace("h0m", "h") if value >= 60 else f'"{value}m"'
    return str(value)


def to_json(plan: Plan, stages: Sequence[StageUse]) -> dict[str, Any]:
    """For programs."""
    return {
        "run_id": plan.run_id,
        "stages": [{**asdict(stage), "state": stage.state.value} for stage in stages],
        "recipe": "\n".join(recipe_lines(stages)),
    }
