"""The one door for processes on the login side: no shell, a process group of its own, ended as a group."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher.errors import SchedulerError

TERMINATE_SECONDS = 5.0  # between TERM and KILL
_handed_on: list[int] = []  # file descriptors that what is started keeps open
_hidden: list[str] = []  # variables that what is started does not get


@dataclass(frozen=True)
class Finished:
    """A process that has ended. `returncode` is negative for a signal, as in subprocess."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """What it said last, on stderr if it wrote there."""
        return last_line(self.stderr) or last_line(self.stdout) or "no message"


def last_line(text: str) -> str:
    """The last line that is not blank; "" where there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class ProcessTimeout(SchedulerError):
    """A process took longer than it was given, and was ended with all its children."""


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Finished:
    """Run a program to its end; `timeout` is in seconds, `on_line` gets each line of stdout and stderr as it comes.

    The exit code is the caller's to judge. Raises SchedulerError if the program cannot be started and
    ProcessTimeout when time is up; then, and on Ctrl-C, its whole process group is ended first.
    """
    process = None
    try:
        with _interrupts_later():
            process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={name: value for name, value in (env or os.environ).items() if name not in _hidden},
                cwd=cwd,
                start_new_session=True,
                pass_fds=_handed_on,
            )
        stdout, stderr = _read(process, timeout, on_line)
        return Finished(process.returncode, stdout, stderr)
    except OSError as error:
        if process is not None:
            raise
        hint = f"is {argv[0]} installed and on PATH?"
        raise SchedulerError(f"cannot start {argv[0]}: {error.strerror}", hint=hint) from None
    except subprocess.TimeoutExpired:
        raise ProcessTimeout(f"{argv[0]} did not end within {timeout:.0f} s") from None
    finally:
        if process is not None:
            if process.returncode is None:
                _end_group(process)
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@contextmanager
def handing_on(handle: int) -> Iterator[None]:
    """Within this block what `run` starts holds this file open too, and so a lock on it: it may outlive us."""
    _handed_on.append(handle)
    try:
        yield
    finally:
        _handed_on.remove(handle)


@contextmanager
def hiding(names: Sequence[str]) -> Iterator[None]:
    """Within this block what `run` starts does not get these variables: Slurm keeps the environment of sbatch."""
    _hidden.extend(names)
    try:
        yield
    finally:
        for name in names:
            _hidden.remove(name)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Ctrl-C counts at the end of this block: inside Popen it would leave a process that nobody knows."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    noted: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: noted.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for number, frame in noted:
            handler(number, frame)


def _read(
    process: subprocess.Popen[bytes], timeout: float | None, on_line: Callable[[str], None] | None
) -> tuple[str, str]:
    deadline = None if timeout is None else time.monotonic() + timeout
    assert process.stdout is not None
    assert process.stderr is not None
    kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    unfinished = {"stdout": b"", "stderr": b""}
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, "stdout")
        selector.register(process.stderr, selectors.EVENT_READ, "stderr")
        while selector.get_map():
            for key, _ in selector.select(_left(process, deadline)):
                chunk = os.read(key.fd, 65536)
                kept[key.data].append(chunk)
                if not chunk:
                    selector.unregister(key.fileobj)
                if on_line is not None:
                    *lines, rest = (unfinished[key.data] + chunk).split(b"\n")
                    if not chunk and rest:
                        lines, rest = [*lines, rest], b""
                    unfinished[key.data] = rest
                    for line in lines:
                        on_line(line.decode(errors="replace").rstrip("\r"))
            _left(process, deadline)
    process.wait(_left(process, deadline))
    return (
        b"".join(kept["stdout"]).decode(errors="replace"),
        b"".join(kept["stderr"]).decode(errors="replace"),
    )


def _left(process: subprocess.Popen[bytes], deadline: float | None) -> float | None:
    """Seconds until the deadline. Raises subprocess.TimeoutExpired when it has passed."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise subprocess.TimeoutExpired(process.args, 0)
    return left


def _end_group(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + TERMINATE_SECONDS
    while time.monotonic() < deadline and _signal_group(process.pid, 0):
        process.poll()  # reap the leader, else its group never looks empty
        time.sleep(0.02)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
