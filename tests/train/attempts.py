"""Attempts of the train stage in one process a rank, one after the other: attempts.py PLAN@ATTEMPT@STOP...

Each plan is one attempt of its run. After step STOP (0: never) the main rank gets the scheduler's signal, as it would
before the time limit. Starting a process takes ten times as long as training a tiny model.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from launcher.plan import from_json
from launcher.work import train
from launcher.work.context import Requeue, from_environment
from launcher.work.megatron import cpu
from tests.train.several import forget


def main(attempts: list[str]) -> None:
    for index, words in enumerate(attempts):
        plan, number, stop = words.split("@")
        context = from_environment(
            from_json(Path(plan).read_text()), "train", {**os.environ, "SWIFTLAUNCH_ATTEMPT": number}
        )
        context.files.attempt("train", int(number)).mkdir(parents=True, exist_ok=True)
        context.catch_signals()
        stop_after(context, int(stop))
        try:
            train.run(context)
            assert not int(stop), f"{plan} did not stop"
        except Requeue:
            leave()
        forget()
        if not index:
            cpu.enable = lambda: False  # its patches are in place


def stop_after(context: Any, step: int) -> None:
    report = context.event

    def event(kind: str, **fields: Any) -> None:
        report(kind, **fields)
        if kind == "step" and fields["step"] == step:
            os.kill(os.getpid(), signal.SIGUSR2)

    context.event = event


def leave() -> None:
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
