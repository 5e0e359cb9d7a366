"""The train stage: hands over to the engine that the recipe names."""

from __future__ import annotations

import importlib

from launcher.errors import WorkerError
from launcher.work import tracking
from launcher.work.context import Context

METHODS = ("cpt", "sft", "dpo", "kto", "simpo", "orpo", "cpo", "rm")
TUNERS = {
    "megatron": ("full", "lora", "rslora", "dora", "pissa"),
    "deepspeed": ("full", "lora", "rslora", "dora", "pissa", "qlora"),
    "fsdp": ("full", "lora", "rslora", "dora", "pissa", "qlora"),
}


def run(context: Context) -> None:
    """Train. Raises WorkerError for engines and methods that cannot, Requeue after a stop with everything saved."""
    tracking.check(context)
    train = context.options["train"]
    engine = train["engine"]
    if engine not in TUNERS:
        raise WorkerError(f"no such engine: {engine!r}", where="train.engine", hint=", ".join(TUNERS))
    if train["method"] not in METHODS:
        raise WorkerError(f"no engine can do {train['method']!r}", where="train.method", hint=", ".join(METHODS))
    if train["tuner"] not in TUNERS[engine]:
        what = f"the {engine} engine has no tuner {train['tuner']!r}"
        raise WorkerError(what, where="train.tuner", hint=", ".join(TUNERS[engine]))
    place = "megatron" if engine == "megatron" else "sharded"
    importlib.import_module(f"launcher.work.{place}.worker").run(context)
