"""What ranks that train together share, whatever the engine: device, process group, work that is divided among them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.work.context import Context
from launcher.work.folders import sha256_of

# A rank that died ends the job step within seconds (srun --kill-on-bad-exit); this bounds every other silence, and
# has to outlast the slowest single collective: waiting for rank 0 while it writes or reads a large model.
COLLECTIVE_TIMEOUT = timedelta(minutes=20)


def device() -> torch.device:
    """Where this rank computes: its GPU, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def meet(context: Context, *, on_host: bool = False) -> None:
    """Meet the other ranks of this attempt: choose the device, form torch's process group.

    With `on_host` ranks on GPUs can also exchange what lies in host memory.
    """
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(context.local_rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(context.stage.resources.cpus_per_task)
    host, port = context.rendezvous()
    dist.init_process_group(
        ("cpu:gloo,cuda:nccl" if on_host else "nccl") if on_gpu else "gloo",
        init_method=f"tcp://{host}:{port}",
        rank=context.rank,
        world_size=context.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )


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
