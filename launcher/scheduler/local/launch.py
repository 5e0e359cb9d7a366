"""Starting our own programs: the supervisor, stepd, and the shims that jobs find on PATH.

They run with `python -I -S`: nothing of the caller's Python settings (PYTHONPATH in a job names other code) counts.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import subprocess
import sys
from pathlib import Path

from launcher.errors import SchedulerError
from launcher.record import write_text
from launcher.scheduler.local import folders
from launcher.scheduler.local.tree import DAEMON

_ROOT = str(Path(__file__).resolve().parents[3])  # the folder that holds the package `launcher`


def _argv(program: str) -> list[str]:
    code = (
        f"import sys; sys.path.insert(0, {_ROOT!r}); "
        f"from launcher.scheduler.local.{program} import main; sys.exit(main(sys.argv[1:]))"
    )
    return [sys.executable, "-I", "-S", "-c", code]


def write_shims(state_dir: str) -> None:
    """The commands `srun` and `scontrol`, where they are missing or of another installation."""
    for program in ("srun", "scontrol"):
        path = os.path.join(folders.shims(state_dir), program)
        text = f'#!/bin/sh\nexec {shlex.join(_argv(program))} "$@"\n'
        if folders.read(path) != text:
            write_text(Path(path), text, mode=0o755)


def start_supervisor(state_dir: str) -> None:
    """Start a supervisor unless one lives.

    The lock is taken here and handed over with its file handle: of any number of callers one starts a supervisor.
    Raises SchedulerError if it does not come up.
    """
    lock = os.open(folders.supervisor_lock(state_dir), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        with open(folders.supervisor_log(state_dir), "ab") as log:
            started = subprocess.run(
                [*_argv("supervisor"), state_dir, str(lock)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_clean(),
                cwd="/",
                pass_fds=(lock,),
                start_new_session=True,
                check=False,
            )
    finally:
        os.close(lock)
    if started.returncode != 0:
        raise SchedulerError("the local scheduler does not start", hint=f"see {folders.supervisor_log(state_dir)}")


def start_stepd(state_dir: str, number: int, restarts: int) -> subprocess.Popen[bytes]:
    """Start the stepd of a job's run."""
    with open(folders.supervisor_log(state_dir), "ab") as log:
        return subprocess.Popen(
            [*_argv("stepd"), state_dir, str(number), str(restarts)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_clean(),
            cwd="/",
            start_new_session=True,
        )


def _clean() -> dict[str, str]:
    """Nothing of the environment in which a daemon happened to be started."""
    return {DAEMON: "1", "PATH": os.defpath, "HOME": os.path.expanduser("~")}
