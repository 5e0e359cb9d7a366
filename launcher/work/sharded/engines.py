"""What divides the training among ranks: FSDP2, or DeepSpeed's ZeRO. Both have the same few verbs.

An engine takes a model, makes the optimizer, runs backward passes, steps, and hands weights and state over. A rank's
loss must be scaled so that the mean over ranks is the global batch's: both average gradients.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from launcher.work.ranks import COLLECTIVE_TIMEOUT, device
from launcher.work.sharded.model import number_format
from launcher.work.sharded.optimizer import PLAIN, make_optimizer

STATE = "state.pt"
ZERO = "zero"  # the folder of DeepSpeed's files


class Engine(Protocol):
    """`module` is what computes, `optimizer` has the groups whose rates the loop sets."""

    module: Any
    optimizer: Any
    divisible: bool  # whether another number of ranks can load its checkpoints

    def zero_grad(self) -> None: ...
    def computing(self) -> contextlib.AbstractContextManager[Any]:
        """Around every pass through the model."""

    def backward(self, loss: Any, *, last: bool) -> None:
        """Add to the gradients; `last` of a step."""

    def step(self) -> float:
        """Clip, update the weights; the norm of the whole gradient before it was clipped."""

    def save(self, folder: Path, *, optimizer: bool, copy: bool) -> Callable[[], list[Path]]:
        """What writes this rank's part of what is trained, and of the optimizer's state; it returns the paths.

        Every rank calls it together. With `copy` it may be called in a thread while training goes on.
        """

    def load(self, folder: Path, *, optimizer: bool) -> None: ...
    def weights(self) -> dict[str, Any]:
        """What is trained, by the model's names, whole and in host memory on the first rank; every rank calls it."""

    def frozen(self, model: Any) -> Any:
        """A model that is not trained, divided likewise."""


@contextlib.contextmanager
def loading(train: Mapping[str, Any], *, micro_batches: int) -> Iterator[None]:
    """Around the loading of the model: ZeRO-3 divides weights as they are read."""
    if train["engine"] != "deepspeed":
        yield
        return
    prepare()
    config = configuration(train, micro_batches=micro_batches)
    from transformers.integrations import HfDeepSpeedConfig, unset_hf_deepspeed_config

    kept = HfDeepSpeedConfig(config)  # transformers looks at the newest one that somebody holds
    yield
    unset_hf_deepspeed_config()
    del kept


def layout(train: Mapping[str, Any], ranks: int) -> str:
    """How the training is divided, in words."""
    if train["engine"] == "fsdp":
        return f"FSDP DP{ranks}"
    return f"ZeRO-{train['deepspeed']['stage']} DP{ranks}"


def start(model: Any, train: Mapping[str, Any], *, micro_batches: int) -> Engine:
    """The engine that the recipe names."""
    if train["engine"] == "deepspeed":
        return DeepSpeed(model, train, micro_batches=micro_batches)
    return Fsdp(model, train)


class HostMemory:
    """Copies of a training's state, in memory that is kept for the next one: to make it takes longer than to copy."""

    def __init__(self) -> None:
        from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

        on_gpu = torch.cuda.is_available()
        self._stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=on_gpu,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=on_gpu,
            )
        )

    def take(self, state: dict[str, Any], *, copy: bool) -> Any:
        """With `copy` the same with all tensors in host memory and none of them training's, until it is taken again."""
        return self._stager.stage(state) if copy else state


def _written(state: Any, path: Path) -> Path:
    with open(path, "wb") as out:
        torch.save(state, out)
        out.flush()
        os.fsync(out.fileno())
    return path


class Fsdp:
    """torch's fully_shard, a unit for each layer of the model (Zhao et al. 2023, "PyTorch FSDP", arXiv:2304.11277).

    One rank has nothing to divide, and trains the plain model, unless it is to be held in host memory.
    """

    def __init__(self, model: Any, train: Mapping[str, Any]) -> None:
        self._bf16 = train["precision"] == "bf16"
        self._clip = float(train.get("gradient_clip", 1.0)) or math.inf
        self._offloads = bool((train.get("fsdp") or {}).get("offload") == "cpu") and torch.cuda.is_available()
        self.divided = dist.get_world_size() > 1 or self._offloads
        self.divisible = train["optimizer"] in PLAIN
        self.module = self._placed(model)
        self.optimizer = make_optimizer(self.module, train)
        self._memory = HostMemory()
        self._writers = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)  # threads exchange beside training

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        # FSDP rounds weights itself; what a plain model keeps in fp32 is rounded here
        rounded: contextlib.AbstractContextManager[Any] = torch.autocast(
            device().type, torch.bfloat16, enabled=self._bf16 and not self.divided
        )
        return rounded

    def backward(self, loss: Any, *, last: bool) -> None:
        loss.backward()

    def step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._trained().values(), self._clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.optimizer.step()
        return float(norm)

    def save(self, folder: Path, *, optimizer: bool, copy: bool) -> Callable[[], list[Path]]:
        if not self.divisible:  # then there is one rank
            whole = {"model": self._trained(), "optimizer": self.optimizer.state_dict() if optimizer else None}
            taken = self._memory.take(whole, copy=copy)
            return lambda: [_written(taken, folder / STATE)]
        return partial(self._write_divided, self._memory.take(self._divided_state(optimizer), copy=copy), folder)

    def load(self, folder: Path, *, optimizer: bool) -> None:
        if not self.divisible:
            # projections of GaLore are objects; the file's hash was compared with what was written
            state = torch.load(folder / STATE, map_location=device(), weights_only=False)
            self.module.load_state_dict(state["model"], strict=False)
            if optimizer:
                self.optimizer.load_state_dict(state["optimizer"])
            return
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

        state = self._divided_state(optimizer)
        dcp.load(state, checkpoint_id=folder)
        set_model_state_dict(self.module, state["model"], options=_options(strict=False))
        if optimizer:
            set_optimizer_state_dict(self.module, self.optimizer, state["optimizer"], options=_options())

    def weights(self) -> dict[str, Any]:
        found = {}
        for name, weight in self._trained().items():
            whole = weight.detach()
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            if dist.get_rank() == 0:
                found[name] = whole.cpu()
        return found

    def frozen(self, model: Any) -> Any:
        return self._placed(model)

    def _placed(self, model: Any) -> Any:
        if not self.divided:
            return model.to(device())
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        settings: dict[str, Any] = {
            "mp_policy": MixedPrecisionPolicy(
                param_dtype=torch.bfloat16 if self._bf16 else None, reduce_dtype=torch.float32 if self._bf16 else None
            ),
            "offload_policy": CPUOffloadPolicy() if self._offloads else OffloadPolicy(),
            "mesh": dist.device_mesh.init_device_mesh(device().type, (dist.get_world_size(),)),
        }
        names = set(model._no_split_modules or ())
        for layer in [module for module in model.modules() if type(module).__name__ in names]:
            fully_shard(layer, **settings)
        return fully_shard(model, **settings)

    def _trained(self) -> dict[str, Any]:
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    def _write_divided(self, state: dict[str, Any], folder: Path) -> list[Path]:
        import torch.distributed.checkpoint as dcp

        dcp.save(state, checkpoint_id=folder, process_group=self._writers)
        about_all = [folder / ".metadata"] if dist.get_rank() == 0 else []
        return [*folder.glob(f"__{dist.get_rank()}_*.distcp"), *about_all]

    def _divided_state(self, optimizer: bool) -> dict[str, Any]:
        from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

        state = {"model": get_model_state_dict(self.module, options=_options(ignore_frozen_params=True))}
        if optimizer:
            state["optimizer"] = get_optimizer_state_dict(self.module, self.optimizer, options=_options())
        return state


class DeepSpeed:
    """DeepSpeed's ZeRO (Rajbhandari et al. 2020, arXiv:1910.02054): stage 2 divides optimizer states and gradients,
    stage 3 the weights too."""

    divisible = False

    def __init__(self, model: Any, train: Mapping[str, Any], *, micro_batches: int) -> None:
        import deepspeed

        self._config = configuration(train, micro_batches=micro_batches)
        self._stage = int(self._config["zero_optimization"]["stage"])
        optimizer = make_optimizer(model, train)
        self.module, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=self._config, dist_init_required=False
        )
        self._memory = HostMemory()

    def zero_grad(self) -> None:
        """A step has done it."""

    def computing(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def backward(self, loss: Any, *, last: bool) -> None:
        self.module.set_gradient_accumulation_boundary(is_boundary=last)
        self.module.backward(loss, scale_wrt_gas=False)

    def step(self) -> float:
        self.module.step()
        return float(self.module.get_global_grad_norm())

    def save(self, folder: Path, *, optimizer: bool, copy: bool) -> Callable[[], list[Path]]:
        parts: dict[Path, Any] = {}

        def keep(state_dict: Any, path: str) -> None:
            parts[Path(path)] = self._memory.take(state_dict, copy=copy)

        self.module.checkpoint_engine.save = keep  # what DeepSpeed would write here and now
        # without the optimizer it still holds the fp32 weights that its states belong to
        self.module.save_checkpoint(str(folder), tag=ZERO, exclude_frozen_parameters=True, save_latest=False)
        return lambda: [_written(state, path) for path, state in parts.items()]

    def load(self, folder: Path, *, optimizer: bool) -> None:
        self.module.load_checkpoint(str(folder), tag=ZERO, load_module_strict=False, load_optimizer_states=optimizer)

    def weights(self) -> dict[str, Any]:
        import deepspeed

        found = {}
        for name, weight in self.module.module.named_parameters():
            if not weight.requires_grad:
                continue
            with deepspeed.zero.GatheredParameters([weight], enabled=self._stage == 3):
                if dist.get_rank() == 0:
                    found[name] = weight.detach().cpu().clone()
        return found

    def frozen(self, model: Any) -> Any:
        import deepspeed

        if self._stage < 3:
            return model.to(device())
        config = {key: value for key, value in self._config.items() if key != "gradient_clipping"}
        zero = {key: value for key, value in config["zero_optimization"].items() if key != "offload_optimizer"}
        copy, *_ = deepspeed.initialize(
            model=model, config={**config, "zero_optimization": zero}, dist_init_required=False
        )
        copy.eval()
        return copy


def saved_weights(model: Any, train: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What was trained, whole, from a checkpoint's folder; `model` says what that is. One rank."""
    wanted = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if train["engine"] == "deepspeed":
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        found = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ZERO, exclude_frozen_parameters=True)
        return {name: found[name] for name in wanted}
    if train["optimizer"] not in PLAIN:
        found = torch.load(folder / STATE, map_location="cpu", weights_only=False)["model"]
        return {name: found[name] for name in wanted}
    import torch.distributed.checkpoint as dcp

    state = {"model": {name: torch.empty_like(weight, device="cpu") for name, weight in wanted.items()}}
    dcp.load(state, checkpoint_id=folder)
    return state["model"]


def prepare() -> None:
    """To be called before a model is loaded that DeepSpeed is to divide: make its communication ready.

    On CPUs it would compile an extension for sharing memory, which trains nothing faster here.
    """
    import deepspeed
    import deepspeed.comm

    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.comm.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)


def configuration(train: Mapping[str, Any], *, micro_batches: int) -> dict[str, Any]:
    """DeepSpeed's configuration from the recipe."""
    settings = train.get("deepspeed") or {}
    zero: dict[str, Any] = {
        "stage": int(settings.get("stage", 2)),
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
    }
    if settings.get("offload") == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
        if zero["stage"] == 3:
            zero["offload_param"] = {"device": "cpu"}
    bf16 = number_format(train) == torch.bfloat16
    micro = int(train["micro_batch_size"])
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": micro_batches,
        "train_batch_size": micro * micro_batches * dist.get_world_size(),
        "gradient_clipping": float(train.get("gradient_clip", 1.0)),
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }


def _options(**settings: Any) -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(**settings)
