"""A stand-in for Transformer Engine on machines without CUDA, in plain torch.

Megatron-core's layer specs and mcore-bridge build models from Transformer Engine modules, which need CUDA to
install at all. This package offers the few of them that dense and mixture-of-experts decoders use, with the same
sharding, under the same names. There is no FP8, no fused kernel and no overlap: it is for correctness on CPUs.
"""

from __future__ import annotations

import contextlib
import enum
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from launcher.work.megatron.te_cpu.attention import DotProductAttention
from launcher.work.megatron.te_cpu.linear import (
    GroupedLinear,
    LayerNorm,
    LayerNormLinear,
    Linear,
    RMSNorm,
    TransformerEngineBaseModule,
)

VERSION = "2.8.0"  # the release whose interface is followed; Megatron-core chooses its calls by it


def install() -> None:
    """Make `import transformer_engine` find this stand-in. Does nothing where some Transformer Engine is loaded."""
    if "transformer_engine" in sys.modules:
        return
    _module("", __version__=VERSION)
    _module("common")
    _module("common.recipe", **{name: type(name, (Recipe,), {}) for name in _RECIPES}, Recipe=Recipe, Format=Format)
    _module(
        "pytorch",
        DotProductAttention=DotProductAttention,
        Fp8Padding=Padding,
        Fp8Unpadding=Padding,
        GroupedLinear=GroupedLinear,
        LayerNorm=LayerNorm,
        LayerNormLinear=LayerNormLinear,
        Linear=Linear,
        RMSNorm=RMSNorm,
        autocast=no_fp8,
        fp8_autocast=no_fp8,
        fp8_model_init=no_fp8,
        quantized_model_init=no_fp8,
    )
    _module("pytorch.fp8", FP8GlobalStateManager=FP8GlobalStateManager, fp8_autocast=no_fp8, fp8_model_init=no_fp8)
    _module("pytorch.quantization", FP8GlobalStateManager=FP8GlobalStateManager)
    _module(
        "pytorch.distributed",
        CudaRNGStatesTracker=CudaRNGStatesTracker,
        checkpoint=checkpoint,
        activation_recompute_forward=lambda *_, **__: contextlib.nullcontext(),
    )
    _module("pytorch.module")
    _module("pytorch.module.base", TransformerEngineBaseModule=TransformerEngineBaseModule, get_workspace=lambda: None)
    _module("pytorch.utils", SplitAlongDim=SplitAlongDim)
    _module("pytorch.attention", _SplitAlongDim=SplitAlongDim, apply_rotary_pos_emb=no_fused_rope)
    _module("pytorch.attention.rope", apply_rotary_pos_emb=no_fused_rope)
    _module("pytorch.router", **dict.fromkeys(_FUSED_ROUTING, no_fused_routing))
    _module("pytorch.ops", Sequential=nn.Sequential, FusibleOperation=nn.Module)
    _module("pytorch.float8_tensor", Float8Tensor=type("Float8Tensor", (torch.Tensor,), {}))
    _module("pytorch.tensor", QuantizedTensor=type("QuantizedTensor", (torch.Tensor,), {}))


_RECIPES = (
    "DelayedScaling",
    "Float8CurrentScaling",
    "Float8BlockScaling",
    "MXFP8BlockScaling",
    "NVFP4BlockScaling",
)

_FUSED_ROUTING = ("fused_compute_score_for_moe_aux_loss", "fused_moe_aux_loss", "fused_topk_with_score_function")


class Recipe:
    """Named in annotations and isinstance checks only."""


class Format(enum.Enum):
    E4M3 = 1
    HYBRID = 2
    E5M2 = 3


class FP8GlobalStateManager:
    """Says that FP8 is off."""

    IS_FIRST_FP8_MODULE = False

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False

    @staticmethod
    def is_first_fp8_module() -> bool:
        return False

    @staticmethod
    def is_fp8_calibration() -> bool:
        return False

    @staticmethod
    def get_fp8_recipe() -> None:
        return None

    @staticmethod
    def reset() -> None:
        return None


class CudaRNGStatesTracker:
    """Base class of Megatron-core's own tracker."""

    def __init__(self) -> None:
        self.states_: dict[str, Any] = {}


class Padding(nn.Module):  # type: ignore[misc]
    """FP8 needs padded expert batches; without FP8 they pass."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def forward(self, tokens: Any, counts: Any) -> Any:
        return tokens, counts


class SplitAlongDim:
    """torch.split in the calling form of an autograd function."""

    @staticmethod
    def apply(tensor: Any, dim: int, sizes: Any, squeeze: bool = False) -> Any:
        return torch.split(tensor, sizes, dim=dim)


@contextlib.contextmanager
def no_fp8(enabled: bool = False, **_: object) -> Iterator[None]:
    """The context managers that switch FP8 on, which here must stay off."""
    if enabled:
        raise NotImplementedError("FP8 needs CUDA and the real Transformer Engine")
    yield


def no_fused_rope(*_: object, **__: object) -> None:
    raise NotImplementedError(
        "fused rotary embeddings need CUDA; the model configuration has apply_rope_fusion = False"
    )


def no_fused_routing(*_: object, **__: object) -> None:
    raise NotImplementedError("fused routing needs CUDA; the model configuration has moe_router_fusion = False")


def checkpoint(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Activation recomputation; the arguments that only CUDA needs are dropped."""
    for name in ("distribute_saved_activations", "get_rng_state_tracker", "tp_group"):
        kwargs.pop(name, None)
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False, **kwargs)


def _module(path: str, **names: Any) -> None:
    name = f"transformer_engine.{path}".rstrip(".")
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    module.__dict__.update(names)
    sys.modules[name] = module
    parent, _, leaf = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], leaf, module)
