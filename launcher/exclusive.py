"""One process at a time at something that takes long to make, whatever number of shells try."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.errors import EnvironmentFault


@contextmanager
def exclusive(lock: Path, *, setting: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `lock`, made if need be; `on_wait` is called once if another process has it.

    Raises EnvironmentFault where it cannot be written: `setting` is the site's key that says where it lies.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write to {lock.parent}: {error.strerror}", hint=f"choose another {setting} in the site file"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
