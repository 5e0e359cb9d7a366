"""`python -m launcher.work PLAN STAGE`: run one rank of one stage and classify how it ended.

megatron-core's checkpoint writer starts helper processes with the spawn method, which imports this module
again: it stays cheap and guarded.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import multiprocessing
import os
import socket
import sys
import time
import traceback
from pathlib import Path

from launcher.errors import SwiftlaunchError
from launcher.plan import from_json
from launcher.record import write_json
from launcher.work.context import EXIT_FATAL, EXIT_REQUEUE, Context, Requeue, from_environment
from launcher.work.versions import installed_versions

# Faults of the surroundings, which may be gone next time; every other exception would come again, above all too
# little memory. "CUDA error" is a broken GPU or link; too little of its memory reads "CUDA out of memory".
TRANSIENT_NAMES = {"DistBackendError", "DistNetworkError", "DistStoreError", "DistError"}
TRANSIENT_TEXTS = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL error", "CUDA error")
# A full disk is not among these: it may be the other node's. A quota waits for a person.
_LASTING = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EDQUOT),
}


def transient(error: BaseException) -> bool:
    """Whether another attempt of the same stage can end differently."""
    if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ in TRANSIENT_NAMES:
        return True
    if isinstance(error, OSError):  # one without a number is a library's word for a file that is wrong or missing
        return error.errno is not None and error.errno not in _LASTING
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
        versions=installed_versions() if context.is_main else {},
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


def _failed(context: Context, error: BaseException) -> int:
    code = 1 if transient(error) else EXIT_FATAL
    text = str(error) or repr(error)
    if not isinstance(error, SwiftlaunchError):
        traceback.print_exception(error)
    print(f"error: {context.stage.name} rank {context.rank}: {text}", file=sys.stderr, flush=True)
    error_class = type(error).__name__
    # the file first: the job script needs the class; on a full disk the exit code has to say it alone
    with contextlib.suppress(OSError):
        write_json(
            context.files.failure(context.stage.name, context.attempt, context.rank, fatal=code == EXIT_FATAL),
            {"rank": context.rank, "error": text, "error_class": error_class, "exit_code": code},
        )
        context.event("attempt_ended", outcome="failed", exit_code=code, error=text, error_class=error_class)
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
