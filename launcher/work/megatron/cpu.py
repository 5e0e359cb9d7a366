"""Lets unmodified Megatron-core and mcore-bridge train on CPUs with gloo.

Both call torch.cuda and ask for device "cuda" by name, with or without a GPU. `enable` answers those calls with the
CPU: device requests are redirected, streams and events do nothing, the CUDA generator is the CPU generator. It also
puts right what only fails on this path: gloo's scatter of non-contiguous tensors, split sizes in the expert dispatcher.
It does nothing where CUDA is available.

Call it before anything imports megatron.core. Losses alone do not prove these patches: Adam with clipping hides a
wrong gradient scale, so the layout tests compare gradient norms too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.utils._device

CPU = torch.device("cpu")

_FACTORIES = (
    *("arange", "as_tensor", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like"),
    *("rand", "rand_like", "randint", "randn", "randn_like", "tensor", "zeros", "zeros_like"),
)


def enable() -> bool:
    """Redirect CUDA to the CPU in this process; True if it did, False where there is CUDA. Call it once."""
    if torch.cuda.is_available():
        return False
    _redirect_devices()
    _silence_cuda_calls()
    _share_generator()
    _scatter_contiguous()
    # imported now, so that they find the redirections and the stand-in
    from launcher.work.megatron import te_cpu

    te_cpu.install()
    _patch_random_states()
    _patch_expert_dispatch()
    return True


def _redirect_devices() -> None:
    # transformers builds models under `with torch.device("meta")`, which recognises the factories by identity and
    # remembers them on first use: let it remember the originals before they are replaced.
    torch.utils._device._device_constructors()
    for name in _FACTORIES:
        setattr(torch, name, _redirected(getattr(torch, name)))
    torch.Tensor.to = _redirected(torch.Tensor.to)
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
    torch.nn.Module.cuda = lambda module, *_, **__: module
    torch.Tensor.pin_memory = lambda tensor, *_, **__: tensor
    torch.Tensor.record_stream = lambda *_: None
    plain_type = torch.Tensor.type

    def type_name(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """Gradient clipping insists on "torch.cuda.FloatTensor"."""
        found = plain_type(tensor, *args, **kwargs)
        return found.replace("torch.", "torch.cuda.", 1) if isinstance(found, str) else found

    torch.Tensor.type = type_name


def _redirected(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if "device" in kwargs:
            kwargs["device"] = _cpu_for_cuda(kwargs["device"])
        return function(*[_cpu_for_cuda(argument) for argument in args], **kwargs)

    return call


def _cpu_for_cuda(value: Any) -> Any:
    if isinstance(value, str):
        return CPU if value.startswith("cuda") else value
    if isinstance(value, torch.device):
        return CPU if value.type == "cuda" else value
    return value


def _silence_cuda_calls() -> None:
    cuda = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.device_count = lambda: 1
    for name in ("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats"):
        setattr(cuda, name, lambda *_, **__: None)
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, lambda *_, **__: 0)
    stream = _Stream()
    cuda.Stream = _Stream
    cuda.Event = _Event
    cuda.current_stream = lambda *_, **__: stream
    cuda.default_stream = lambda *_, **__: stream
    cuda.stream = lambda *_, **__: contextlib.nullcontext()
    for name in ("range_push", "range_pop", "range_end"):
        setattr(cuda.nvtx, name, lambda *_, **__: None)
    cuda.nvtx.range_start = lambda *_, **__: 0


class _Stream:
    """Work on a CPU is done in order already."""

    cuda_stream = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def wait_stream(self, other: object) -> None:
        pass

    def wait_event(self, event: object) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Event()

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Event:
    def __init__(self, *_: object, **__: object) -> None:
        pass

    def record(self, *_: object) -> None:
        pass

    def wait(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: object) -> float:
        return 0.0


def _share_generator() -> None:
    # not torch.manual_seed: it seeds torch.cuda in turn
    torch.cuda.manual_seed = lambda seed: torch.default_generator.manual_seed(int(seed))
    torch.cuda.manual_seed_all = lambda seed: None
    for place in (torch.cuda, torch.cuda.random):
        place.get_rng_state = lambda *_, **__: torch.get_rng_state()
        place.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def _patch_random_states() -> None:
    import megatron.core.tensor_parallel.random as random

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # forking the "CUDA" generator changes the CPU's, which is the same one here
    logging.getLogger(random.__name__).addFilter(lambda line: "CPU RNG state" not in line.getMessage())


def _scatter_contiguous() -> None:
    plain = dist.scatter

    @functools.wraps(plain)
    def scatter(tensor: Any, scatter_list: Any = None, *args: Any, **kwargs: Any) -> Any:
        """gloo sends wrong data for non-contiguous tensors, without an error."""
        parts = [part.contiguous() for part in scatter_list] if scatter_list else scatter_list
        return plain(tensor, parts, *args, **kwargs)

    dist.scatter = scatter


def _patch_expert_dispatch() -> None:
    from megatron.core.transformer.moe import moe_utils, token_dispatcher

    if not hasattr(moe_utils, "te_general_gemm"):  # left unbound without Transformer Engine's GEMM
        moe_utils.te_general_gemm = None

    def to_host(tensor: Any, as_numpy: bool = False, **_: object) -> Any:
        """Split sizes must become a plain sequence for gloo's all-to-all, which upstream does for CUDA tensors only."""
        return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor

    moe_utils.maybe_move_tensor_to_cpu = to_host
    token_dispatcher.maybe_move_tensor_to_cpu = to_host
