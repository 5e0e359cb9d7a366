"""The ranks of one attempt: device, process groups, seeds, and work that ranks share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.topology import Layout
from launcher.work.context import Context
from launcher.work.folders import sha256_of
from launcher.work.megatron import cpu

# A rank that died ends the job step within seconds (srun --kill-on-bad-exit); this bounds every other silence, and
# has to outlast the slowest single collective: waiting for rank 0 while it writes or reads a large model.
COLLECTIVE_TIMEOUT = timedelta(minutes=20)


def prepare() -> None:
    """Set what must be set before Megatron-core is imported; afterwards it can be imported on any machine."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # orders communication before compute under TP
    if not torch.cuda.is_available():
        warnings.filterwarnings("ignore", message=".*Apex .* not installed")
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # fusions would call a C++ compiler at run time
        cpu.enable()


def join(context: Context, layout: Layout, *, seed: int) -> None:
    """Meet the other ranks of this attempt and form the parallel groups."""
    on_gpu = torch.cuda.is_available()
    # mcore-bridge decides by these which rank writes
    os.environ.update(RANK=str(context.rank), WORLD_SIZE=str(context.world_size), LOCAL_RANK=str(context.local_rank))
    if on_gpu:
        torch.cuda.set_device(context.local_rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(context.stage.resources.cpus_per_task)
    host, port = context.rendezvous()
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=context.rank,
        world_size=context.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline if layout.virtual_pipeline > 1 else None,
        context_parallel_size=layout.context,
        expert_model_parallel_size=layout.expert,
        expert_tensor_parallel_size=layout.expert_tensor,
        distributed_timeout_minutes=int(COLLECTIVE_TIMEOUT.total_seconds() // 60),
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def leave() -> None:
    """End the process groups; call it on success only, since it waits for the other ranks."""
    dist.barrier()
    dist.destroy_process_group()


def hash_files(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file on a file system that all ranks see; ranks share the reading. Call it on every rank."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = {index: _digest(path) for index, path in enumerate(paths) if index % world == rank}
    gathered: list[Any] = [None] * world
    dist.all_gather_object(gathered, mine)
    found = {index: digest for part in gathered for index, digest in part.items()}
    return [found[index] for index in range(len(paths))]


def listed(paths: Iterable[Path]) -> list[Path]:
    """The paths that any rank sees, in order: on a network file system a node may be late to see another's files.

    Call it on every rank; all get the same list.
    """
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, [str(path) for path in paths])
    return sorted({Path(path) for part in gathered for path in part})


def _digest(path: Path) -> str:
    """SHA-256 of one file, "" where it cannot be read."""
    try:
        return sha256_of(path)
    except OSError:
        return ""
