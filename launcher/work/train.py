"""The train stage: hands over to the engine that the recipe names."""

from __future__ import annotations

from launcher.errors import WorkerError
from launcher.work.context import Context

METHODS = ("cpt", "sft", "dpo", "kto", "simpo", "orpo", "cpo", "rm")
TUNERS = ("full", "lora", "rslora", "dora")


def run(context: Context) -> None:
    """Train. Raises WorkerError for engines and methods that cannot, Requeue after a stop with everything saved."""
    train = context.options["train"]
    if train["engine"] != "megatron":
        raise WorkerError(f"no such engine: {train['engine']!r}", where="train.engine", hint="megatron")
    if train["method"] not in METHODS:
        raise WorkerError(
            f"the megatron engine cannot do {train['method']!r}", where="train.method", hint=", ".join(METHODS)
        )
    if train["tuner"] not in TUNERS:
        raise WorkerError(
            f"the megatron engine has no tuner {train['tuner']!r}", where="train.tuner", hint=", ".join(TUNERS)
        )
    from launcher.work.megatron import worker

    worker.run(context)
