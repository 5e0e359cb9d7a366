"""How the process of a rank ends: at once, and with nothing of it left on the node."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import tempfile
from typing import NoReturn


def end_process(code: int) -> NoReturn:
    """End with this exit code. Threads of engines, which would keep a finished rank alive, are not waited for.

    That runs no exit handlers: helper processes and temporary folders, which would outlive the rank, end here. What was
    printed is not flushed, for a hung file system would hold that up.
    """
    for helper in multiprocessing.active_children():
        helper.kill()  # one that was forked takes SIGTERM as its parent does: as a wish
        helper.join(timeout=5)
    for found in gc.get_objects():
        if type(found) is tempfile.TemporaryDirectory:
            with contextlib.suppress(OSError):
                found.cleanup()
    os._exit(code)
