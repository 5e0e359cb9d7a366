"""Which ends of a worker are worth another attempt."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from launcher.errors import WorkerError
from launcher.failures import NOT_AGAIN, classify
from launcher.plan import Environment, Resources, Stage
from launcher.record import Recorder
from launcher.rundir import RunDir
from launcher.work.context import Context, Requeue

pytestmark = pytest.mark.unit


class DistBackendError(RuntimeError):
    """As torch.distributed names it."""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


def system(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (system(errno.EIO), True),
        (system(errno.ESTALE), True),
        (system(errno.ENOSPC), True),
        (system(errno.EDQUOT), False),
        (system(errno.ENOENT), False),
        (system(errno.EACCES), False),
        (system(errno.EROFS), False),
        (system(errno.EISDIR), False),
        (OSError("Error no file named model.safetensors found in directory /m"), False),
        (ConnectionResetError(), True),
        (TimeoutError("waited 300 s for rank 0"), True),
        (DistBackendError("unhandled system error"), True),
        (RuntimeError("[gloo/transport] Connection closed by peer"), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), False),
        (MemoryError(), False),
        (WorkerError("no"), False),
        (KeyError("model"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_is_tried_again(error: BaseException, again: bool) -> None:
    assert (classify(error).kind not in NOT_AGAIN) is again


@pytest.mark.parametrize(
    ("number", "seconds_left", "expected"),
    [
        (signal.SIGUSR2, 120, WorkerError),  # the time limit: the next attempt would not get further
        (signal.SIGTERM, 30, WorkerError),
        (signal.SIGTERM, 3000, Requeue),  # preempted
        (signal.SIGUSR2, 3000, Requeue),  # preempted, where Slurm sends the job's own signal then
        (signal.SIGUSR2, None, WorkerError),
        (signal.SIGTERM, None, Requeue),
    ],
)
def test_a_worker_that_saves_nothing_is_told_to_stop(
    tmp_path: Path, number: signal.Signals, seconds_left: int | None, expected: type[Exception]
) -> None:
    context = Context(
        plan=None,  # type: ignore[arg-type]  # not looked at
        stage=Stage("export", "export", Resources(1, 1, 1, 0, 64, 60), Environment("train", "venv", "python3"), {}),
        files=RunDir(tmp_path),
        rank=0,
        world_size=1,
        local_rank=0,
        attempt=1,
        recorder=Recorder(tmp_path / "events" / "e", stage="export", attempt=1, rank=0),
        end_time=None if seconds_left is None else time.time() + seconds_left,
    )
    context.raise_if_stopping()
    context.stop_signal = number
    with pytest.raises(expected):
        context.raise_if_stopping()
