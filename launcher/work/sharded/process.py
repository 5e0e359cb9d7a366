"""The ranks of one attempt, and what libraries look for in the environment."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from launcher.work import ranks
from launcher.work.context import Context


def join(context: Context, train: Mapping[str, Any]) -> None:
    """Meet the other ranks of this attempt; random numbers start the same on all of them."""
    seed = int(train["seed"])
    os.environ.update(RANK=str(context.rank), WORLD_SIZE=str(context.world_size), LOCAL_RANK=str(context.local_rank))
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed and FSDP still call these by their old names, in every step
    warnings.filterwarnings("ignore", "`torch.distributed.*` is deprecated", FutureWarning)
    # gradients that FSDP holds in host memory have their norm found there
    ranks.meet(context, on_host=(train.get("fsdp") or {}).get("offload") == "cpu")
    random.seed(seed)
    torch.manual_seed(seed)
