"""What Megatron-core's checkpoints are made of: a copy of the state in host memory, and the files of one rank."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


class Snapshot:
    """Copies in host memory of what this rank writes. The memory is kept for the next one: to make it takes longer."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, tuple[int, ...]], Any] = {}

    def take(self, state: Mapping[str, Any], *, copy: bool) -> None:
        """Let `state`, as Megatron-core's checkpoints take it, refer to copies instead of to what training changes.

        Without `copy` only what is not in host memory is copied: training waits until the file is written.
        """
        from megatron.core.dist_checkpointing.dict_utils import nested_values
        from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories, is_main_replica

        apply_factories(state)
        for part in nested_values(state):
            if not isinstance(part, ShardedTensor) or not is_main_replica(part.replica_id):
                continue
            if not copy and part.data.device.type == "cpu":
                continue
            place = (part.key, part.global_offset)
            host = self._kept.get(place)
            if host is None or host.shape != part.data.shape or host.dtype != part.data.dtype:
                pinned = torch.cuda.is_available()
                host = torch.empty(part.data.shape, dtype=part.data.dtype, device="cpu", pin_memory=pinned)
                self._kept[place] = host
            host.copy_(part.data.detach(), non_blocking=True)
            part.data = host
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def write(request: Any) -> list[Path]:
    """Write this rank's files of megatron.core's AsyncRequest; returns their paths."""
    from megatron.core.dist_checkpointing.strategies.filesystem_async import _write_item
    from torch.distributed.checkpoint.filesystem import SerializationFormat

    if request.async_fn is None:  # nothing of it is this rank's to write
        return []
    transforms, *_ = request.async_fn.args
    _, buckets, results = request.async_fn_args
    written = {}
    for index, (path, name, parts) in enumerate(buckets):
        with open(path, "wb") as out:
            written[index] = [
                _write_item(*transforms, out, data, item, name, SerializationFormat.TORCH_SAVE)
                for items in parts
                for item, data in items
            ]
            out.flush()
            os.fsync(out.fileno())
    results.put(written)
    return [Path(path) for path, _, _ in buckets]


def without_processes() -> None:
    """Keep Megatron-core from starting the helper that holds the queue of its writers' results."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()
