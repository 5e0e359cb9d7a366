"""Processes of a job: who is alive, which belong to it, how they are ended.

A pid alone says nothing, it may be another process by now: an identity is pid, start time and boot. A job's processes
are found in two ways, since each misses some: they descend from its stepd (a "child subreaper": who forks away from
its parent becomes stepd's child, not init's), and they carry the job's marker in the environment they started with.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable

DAEMON = "SWIFTLAUNCH_LOCAL_DAEMON"  # variable of supervisors and stepds: never part of a job's tree
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # gone, or another user's
        return b""


def boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def stat(pid: int) -> tuple[str, int, str] | None:
    """State letter, parent's pid and start time (clock ticks since boot) of a process; None where there is none."""
    text = _read(f"/proc/{pid}/stat").decode(errors="replace")
    fields = text[text.rfind(")") + 2 :].split()  # the name in brackets may hold anything
    return (fields[0], int(fields[1]), fields[19]) if len(fields) > 19 else None


def identity(pid: int) -> str:
    """ "PID START BOOT" of a process; "" where there is none."""
    found = stat(pid)
    return f"{pid} {found[2]} {boot_id()}" if found else ""


def alive(who: str) -> bool:
    """Whether the process of this identity still runs; a zombie does not."""
    if not who:
        return False
    found = stat(int(who.split()[0]))
    return found is not None and found[0] not in "ZX" and who == f"{who.split()[0]} {found[2]} {boot_id()}"


def send(who: str, number: int) -> bool:
    """Signal the process of this identity. False if it has gone."""
    return alive(who) and kill(int(who.split()[0]), number)


def kill(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _pids() -> Iterable[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _variables(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/environ").split(b"\0")


def marked(entry: str) -> set[int]:
    """Living processes of this user that started with the variable `entry`, "NAME=value"."""
    wanted, own = os.fsencode(entry), os.getuid()
    found = set()
    for pid in _pids():
        try:
            if os.stat(f"/proc/{pid}").st_uid != own:
                continue
        except OSError:
            continue
        if pid != os.getpid() and wanted in (variables := _variables(pid)) and not _is_daemon(variables):
            state = stat(pid)
            if state is not None and state[0] not in "ZX":
                found.add(pid)
    return found


def descendants(root: int) -> set[int]:
    """Living processes below `root`; a supervisor or stepd that was started in there is left out with all its own."""
    children: dict[int, list[int]] = {}
    living = set()
    for pid in _pids():
        if (state := stat(pid)) is not None:
            children.setdefault(state[1], []).append(pid)
            if state[0] not in "ZX":
                living.add(pid)
    found, waiting = set(), list(children.get(root, ()))
    while waiting:
        pid = waiting.pop()
        if not _is_daemon(_variables(pid)):
            found.add(pid)
            waiting += children.get(pid, ())
    return found & living


def _is_daemon(variables: list[bytes]) -> bool:
    return any(variable.startswith(DAEMON.encode() + b"=") for variable in variables)


def kill_all(processes: Callable[[], set[int]], *, seconds: float = 60.0) -> set[int]:
    """KILL what `processes` finds until it finds nothing more; returns what `seconds` did not suffice for."""
    deadline = time.monotonic() + seconds
    while left := processes():
        for pid in left:
            kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return left  # hangs in the kernel, on a dead disk for instance
        time.sleep(0.01)
    return set()


def reap() -> dict[int, int]:
    """The children that have ended, {pid: wait status}."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = status


def prctl(option: int, value: int) -> None:
    """prctl(2). Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def reset_signals() -> None:
    """Before exec: what Python changed (SIGPIPE ignored) or we blocked must not reach the new program."""
    for number in (
        signal.SIGPIPE,
        signal.SIGXFSZ,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGTERM,
        signal.SIGCHLD,
    ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
