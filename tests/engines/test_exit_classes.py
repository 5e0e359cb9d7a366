"""Which exceptions of a worker are worth another attempt."""

from __future__ import annotations

import errno
import os

import pytest

from launcher.errors import WorkerError
from launcher.work.__main__ import transient

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
    assert transient(error) is again
