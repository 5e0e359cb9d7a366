"""The ranks of one attempt, and what libraries look for in the environment."""

from __future__ import annotations

import os
import random
import warnings

import torch

from launcher.work import ranks
from launcher.work.context import Context


def join(context: Context, *, seed: int) -> None:
    """Meet the other ranks of this attempt; random numbers start the same on all of them."""
    os.environ.update(RANK=str(context.rank), WORLD_SIZE=str(context.world_size), LOCAL_RANK=str(context.local_rank))
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed and FSDP still call these by their old names, in every step
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    ranks.meet(context)
    random.seed(seed)
    torch.manual_seed(seed)
