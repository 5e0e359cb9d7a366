"""Checkpoints in Megatron-core's torch_dist format.

    .metadata, *.distcp, common.pt ...   weights (of adapters: the adapters alone), optimizer state, random states of
                                         every rank

They are loaded into whatever layout the ranks have; random states are of ranks, and go on in the same layout alone.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launcher.errors import WorkerError
from launcher.work import checkpoints
from launcher.work.megatron import optimizer_state, saving
from launcher.work.megatron.model import Model


class Checkpoints(checkpoints.Checkpoints):
    """The checkpoints of a stage on Megatron-core."""

    same_layout_only = "go on in the same layout, or start a run with adamw"

    def __init__(
        self,
        folder: Path,
        model: Model,
        optimizer: Any,
        settings: Mapping[str, Any],
        *,
        layout: str,
        data: str,
        seed: int,
    ) -> None:
        super().__init__(folder, settings, layout=layout, data=data)
        self.model = model
        self.optimizer = optimizer
        self.seed = seed
        self._snapshot = saving.Snapshot()
        self._checked = False  # whether Megatron-core has found every tensor whole
        saving.without_processes()

    def _copied(self, folder: Path) -> checkpoints.Part:
        from megatron.core import dist_checkpointing

        self.model.gather()
        found = optimizer_state.facts(self.optimizer) if self._with_optimizer else None
        state = self._state(found, with_random=True)
        self._snapshot.take(state, copy=self.asynchronous)
        request = dist_checkpointing.save(
            state, str(folder), async_sharded_save=True, validate_access_integrity=not self._checked
        )
        self._checked = True
        return checkpoints.Part(partial(saving.write, request), partial(_completed, request), found)

    def _divisible(self, optimizer: Mapping[str, Any] | None) -> bool:
        return not optimizer or bool(optimizer["divisible"])

    def _restore(self, path: Path, manifest: Any, *, same_layout: bool) -> None:
        from megatron.core import dist_checkpointing

        found = manifest["optimizer"]
        if found:
            optimizer_state.prepare(self.optimizer, found)
        loaded = dist_checkpointing.load(self._state(found, with_random=same_layout), str(path))
        set_weights(self.model, loaded, path)
        if found:
            optimizer_state.restore(self.optimizer, found, loaded["optimizer"])
        else:
            self.optimizer.reload_model_params()
        if same_layout:
            _set_random_state(loaded["random"])
        else:
            _new_random_state(self.seed, manifest["progress"]["step"])

    def _state(self, optimizer: Mapping[str, Any] | None, *, with_random: bool) -> dict[str, Any]:
        """This rank's part of the checkpoint, each tensor with its place in the whole; `optimizer` as in a manifest."""
        from megatron.core.dist_checkpointing.mapping import ShardedObject

        state = weights(self.model)
        if optimizer:
            places = dict(state)
            state["optimizer"] = optimizer_state.sharded(self.optimizer, places, divisible=optimizer["divisible"])
        if with_random:
            rank, world = dist.get_rank(), dist.get_world_size()
            state["random"] = ShardedObject("random", _random_state(), (world,), (rank,))
        return state


def weights(model: Model) -> dict[str, Any]:
    """The weights that a checkpoint holds, by chunk: what is trained, each tensor with its place in the whole."""
    return {f"model{index}": _weights(model, chunk) for index, chunk in enumerate(model.bare)}


def _weights(model: Model, chunk: Any) -> dict[str, Any]:
    whole: dict[str, Any] = chunk.sharded_state_dict()
    if model.bare is model.adapted:
        return whole
    head = "output_layer.weight" if model.scores else ""
    return {name: part for name, part in whole.items() if ".lora_" in name or name == head}


def set_weights(model: Model, loaded: Mapping[str, Any], path: Path) -> None:
    """Put loaded weights into the model. Raises WorkerError where they are not those of this model."""
    for index, chunk in enumerate(model.bare):
        missing, unexpected = chunk.load_state_dict(loaded[f"model{index}"], strict=False)
        trained = {name for name, parameter in chunk.named_parameters() if parameter.requires_grad}
        if unexpected or trained & set(missing):
            raise WorkerError(
                f"weights do not fit this model: missing {sorted(trained & set(missing))}, unknown {unexpected}",
                where=str(path),
            )


def _completed(request: Any) -> None:
    for finish in request.finalize_fns:  # writes what describes the files of all ranks
        finish()


def _random_state() -> dict[str, Any]:
    from megatron.core import tensor_parallel

    return {**checkpoints.random_state(), "tracker": tensor_parallel.get_cuda_rng_tracker().get_states()}


def _set_random_state(state: dict[str, Any]) -> None:
    from megatron.core import tensor_parallel

    tensor_parallel.get_cuda_rng_tracker().set_states(state["tracker"])
    checkpoints.set_random_state(state)


def _new_random_state(seed: int, step: int) -> None:
    """Random numbers of ranks that no checkpoint has states of: from the run's seed and the step."""
    from megatron.core import tensor_parallel

    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    fresh = int.from_bytes(digest[:6], "little")
    random.seed(fresh)
    tensor_parallel.model_parallel_cuda_manual_seed(fresh)
