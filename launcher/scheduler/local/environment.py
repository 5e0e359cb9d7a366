"""The variables that a batch script sees, named as in sbatch(1) OUTPUT ENVIRONMENT VARIABLES."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping

from launcher.scheduler.local import folders
from launcher.scheduler.local.config import Config
from launcher.scheduler.local.hostlist import compress, node_name
from launcher.scheduler.local.table import Row
from launcher.scheduler.local.tree import DAEMON

# what a submission from inside another job must not hand on
_FOREIGN = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SWIFTLAUNCH_LOCAL_")
_NO_LIMIT_SECONDS = 365 * 86400  # Slurm's end time of a job without a limit


def submitted(environ: Mapping[str, str]) -> dict[str, str]:
    """The submitter's environment without what describes another job."""
    return {name: value for name, value in environ.items() if not name.startswith(_FOREIGN) and name != DAEMON}


def nodelist(row: Row) -> str:
    """The job's nodes in Slurm's short form; "" while it has none."""
    return compress([node_name(index) for index in sorted(row.allocation)])


def end_time(row: Row) -> float:
    """Unix seconds at which the time limit ends the job."""
    return (row.started or 0.0) + (row.request.time_limit_seconds or _NO_LIMIT_SECONDS)


def batch(row: Row, config: Config, *, state_dir: str, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of the batch shell of a running job."""
    need = row.request
    nodes = nodelist(row)
    first_gpus = row.allocation[min(row.allocation)]
    values = dict(base)
    values.update(
        {
            folders.RUN: folders.run(state_dir, row.id, row.restarts),
            "PATH": os.pathsep.join([folders.shims(state_dir), base.get("PATH", os.defpath)]),
            "ENVIRONMENT": "BATCH",
            "SLURM_CLUSTER_NAME": "local",
            "SLURM_CPUS_ON_NODE": str(need.cpus_per_node),
            "SLURM_CPUS_PER_TASK": str(need.cpus_per_task),
            "SLURM_JOBID": str(row.id),
            "SLURM_JOB_CPUS_PER_NODE": _each(need.cpus_per_node, need.nodes),
            "SLURM_JOB_END_TIME": str(int(end_time(row))),
            "SLURM_JOB_ID": str(row.id),
            "SLURM_JOB_NAME": row.name,
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_JOB_NUM_NODES": str(need.nodes),
            "SLURM_JOB_PARTITION": "local",
            "SLURM_JOB_START_TIME": str(int(row.started or 0)),
            "SLURM_JOB_UID": str(os.getuid()),
            "SLURM_JOB_USER": base.get("USER") or getpass.getuser(),
            "SLURM_LOCALID": "0",
            "SLURM_NNODES": str(need.nodes),
            "SLURM_NODEID": "0",
            "SLURM_NODELIST": nodes,
            "SLURM_NPROCS": str(need.tasks),
            "SLURM_NTASKS": str(need.tasks),
            "SLURM_NTASKS_PER_NODE": str(need.tasks_per_node),
            "SLURM_PROCID": "0",
            "SLURM_SUBMIT_DIR": row.directory,
            "SLURM_SUBMIT_HOST": os.uname().nodename,
            "SLURM_TASKS_PER_NODE": _each(need.tasks_per_node, need.nodes),
            "SLURMD_NODENAME": node_name(min(row.allocation)),
        }
    )
    if need.memory_mib is not None:
        values["SLURM_MEM_PER_NODE"] = str(need.memory_mib or config.machine.memory_mib)
    if row.restarts:
        values["SLURM_RESTART_COUNT"] = str(row.restarts)
    if need.gpus_per_node:
        values["SLURM_GPUS_ON_NODE"] = str(len(first_gpus))
        values["SLURM_GPUS_PER_NODE"] = str(need.gpus_per_node)
        values["SLURM_JOB_GPUS"] = values["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, first_gpus))
    if row.array_id is not None:
        values["SLURM_ARRAY_JOB_ID"] = str(row.array_id)
        values["SLURM_ARRAY_TASK_ID"] = str(row.task)
        for key in ("count", "min", "max"):
            values[f"SLURM_ARRAY_TASK_{key.upper()}"] = str(row.array[key])
    return values


def _each(count: int, nodes: int) -> str:
    return str(count) if nodes == 1 else f"{count}(x{nodes})"
