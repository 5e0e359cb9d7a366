"""Runs the train stage of several plans in one process a rank: several.py PLAN... (in the train environment).

Starting a process takes ten times as long as training a tiny model, so tests of many methods share the start. Plans of
one layout that follow each other share its process groups, too: each group has threads that outlive it.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

from launcher.plan import from_json
from launcher.work import ranks, train
from launcher.work.context import Context, from_environment
from launcher.work.ending import end_process
from launcher.work.megatron import cpu, process


def main(plans: list[str]) -> None:
    groups = Groups()
    process.join, ranks.leave = groups.join, groups.leave  # type: ignore[assignment]
    for number, path in enumerate(plans):
        context = from_environment(from_json(Path(path).read_text()), "train", os.environ)
        context.files.attempt("train", context.attempt).mkdir(parents=True, exist_ok=True)
        try:
            train.run(context)
        except BaseException:
            print(f"{path} failed", file=sys.stderr, flush=True)
            raise
        if not number:
            cpu.enable = lambda: False  # its patches are in place


class Groups:
    """The process groups of the last layout, in place of those that each run would form."""

    def __init__(self) -> None:
        self._join, self._leave = process.join, ranks.leave
        self._layout: Any = None
        self._seen = False

    def join(self, context: Context, layout: Any, *, seed: int) -> None:
        if layout != self._layout:
            if self._layout is not None:
                self._leave()
                forget()
            self._join(context, layout, seed=seed)
            self._layout = layout
            return
        from megatron.core import tensor_parallel

        tensor_parallel.model_parallel_cuda_manual_seed(seed)

    def leave(self) -> None:
        import torch.distributed as dist
        from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator

        dist.barrier()
        destroy_num_microbatches_calculator()
        gc.collect()
        if not self._seen:  # what libraries have made by now stays, and is not to be looked through after each run
            gc.freeze()
        self._seen = True


def forget() -> None:
    """Make Megatron-core and mcore-bridge forget the groups of the last run."""
    from mcore_bridge.bridge import gpt_bridge
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator

    parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    gpt_bridge.EP_PP_GROUP = None
    gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    gc.unfreeze()
    end_process(0)  # threads of libraries may abort a process that ends otherwise
