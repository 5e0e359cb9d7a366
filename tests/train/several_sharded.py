"""Runs the train stage of several plans in one process a rank, as several.py does: several_sharded.py PLAN...

In the environment of the engines deepspeed and fsdp. All plans share the process groups of the first one, whose
threads would outlive them.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from launcher.plan import from_json
from launcher.work import ranks, train
from launcher.work.context import Requeue, from_environment
from launcher.work.ending import end_process


def main(plans: list[str]) -> None:
    ranks.leave = dist.barrier
    for number, path in enumerate(plans):
        context = from_environment(from_json(Path(path).read_text()), "train", os.environ)
        if "ENDS_IN" in os.environ:  # the job, in seconds
            context.end_time = time.time() + float(os.environ["ENDS_IN"])
        try:
            train.run(context)
        except Requeue as stop:
            print(stop, flush=True)
        except BaseException:
            print(f"{path} failed", file=sys.stderr, flush=True)
            raise
        if not number:
            ranks.meet = lambda *_, **__: None


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    end_process(0)  # threads of libraries may abort a process that ends otherwise
