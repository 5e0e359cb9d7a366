"""The ranks of one attempt with Megatron-core: its parallel groups and seeds."""

from __future__ import annotations

import os
import warnings

import torch

from launcher.topology import Layout
from launcher.work.context import Context
from launcher.work.megatron import cpu
from launcher.work.ranks import COLLECTIVE_TIMEOUT, meet

# what libraries tell each other in every run: nobody who trains can do anything about it
_NOT_OURS = (
    r"`torch\.distributed\..*` is deprecated",
    "full scope is deprecated",
    r"The \.grad attribute of a Tensor that is not a leaf",
)


def prepare() -> None:
    """Set what must be set before Megatron-core is imported; afterwards it can be imported on any machine."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")  # orders communication before compute under TP
    for message in _NOT_OURS:
        warnings.filterwarnings("ignore", message=message)
    if not torch.cuda.is_available():
        warnings.filterwarnings("ignore", message=".*Apex .* not installed")
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # fusions would call a C++ compiler at run time
        cpu.enable()


def join(context: Context, layout: Layout, *, seed: int) -> None:
    """Meet the other ranks of this attempt and form the parallel groups."""
    # mcore-bridge decides by these which rank writes
    os.environ.update(RANK=str(context.rank), WORLD_SIZE=str(context.world_size), LOCAL_RANK=str(context.local_rank))
    meet(context)
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
