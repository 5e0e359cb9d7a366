"""What jobs used, from sacct with their steps: a function of its text."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from launcher.scheduler.base import Use
from launcher.scheduler.slurm.limits import parse_tres
from launcher.states import from_slurm
from launcher.units import parse_mib

USE_FIELDS = "JobID,State,ElapsedRaw,TotalCPU,AllocCPUS,NNodes,NTasks,MaxRSS,AllocTRES,TimelimitRaw"
_CPU_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


def parse_use(text: str) -> list[Use]:
    """From `sacct -P -n -D -o USE_FIELDS`: a line for each run of a job, below it lines of its steps.

    Slurm samples memory every JobAcctGatherFrequency (30 s by default): of a shorter step it knows none. MaxRSS is
    the largest task of a step; steps of a job may run side by side, so their nodes' needs are added up.
    """
    found: list[Use] = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(USE_FIELDS.split(",")):
            continue
        job_id, state, elapsed, cpu, cpus, nodes, tasks, peak, tres, limit = fields
        whole, _, step = job_id.partition(".")
        if not step:
            if "[" in job_id or not tres:
                continue  # never started; one that ran for less than a second has an elapsed time of 0 too
            given = parse_tres(tres)
            memory = given.get("mem")
            node_count = int(nodes or 1)
            found.append(
                Use(
                    job_id=whole,
                    state=from_slurm(state),
                    seconds=float(elapsed or 0),
                    nodes=node_count,
                    cpus=int(cpus or 0),
                    gpus=given.get("gres/gpu", 0),
                    memory_mib=memory / node_count if memory is not None else None,
                    limit_seconds=float(limit) * 60 if limit.isdigit() else None,
                    cpu_seconds=_cpu_seconds(cpu),
                )
            )
        elif found and found[-1].job_id == whole and peak and (mib := _mib(peak)):
            per_node = mib * math.ceil(int(tasks or 1) / int(nodes or 1))
            found[-1] = replace(found[-1], peak_mib=(found[-1].peak_mib or 0.0) + per_node)
    return found


def _cpu_seconds(text: str) -> float | None:
    """Of "[days-][hours:]minutes:seconds[.part]"; None where nothing was measured."""
    match = _CPU_TIME.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = match.groups()
    total = int(days or 0) * 86400 + int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds)
    return total or None


def _mib(text: str) -> float:
    """MiB of "74688K", "1.50G"; a number alone is bytes. 0 for what is less than one or no size."""
    if text.isdigit():
        return int(text) / 2**20
    try:
        return parse_mib(text)
    except ValueError:
        return 0.0
