"""Job states: one table maps every state that Slurm prints; anything else is UNKNOWN and never terminal.

Source: the JOB STATE CODES of squeue(1) and sacct(1), releases 22.05 to 26.05.
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """What a job is doing, in the words that swiftlaunch shows."""

    NOT_SUBMITTED = "NOT_SUBMITTED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    REQUEUED = "REQUEUED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    PREEMPTED = "PREEMPTED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    UNKNOWN = "UNKNOWN"

    @property
    def terminal(self) -> bool:
        """The job has ended and will not run again by itself."""
        return self in _TERMINAL

    @property
    def succeeded(self) -> bool:
        return self is State.COMPLETED


_TERMINAL = frozenset(
    {
        State.COMPLETED,
        State.FAILED,
        State.CANCELLED,
        State.TIMEOUT,
        State.PREEMPTED,
        State.NODE_FAIL,
        State.OUT_OF_MEMORY,
    }
)

_SLURM = {
    "PENDING": State.PENDING,
    "PD": State.PENDING,
    "CONFIGURING": State.PENDING,
    "CF": State.PENDING,
    "RESV_DEL_HOLD": State.PENDING,
    "REQUEUE_HOLD": State.PENDING,
    "REQUEUE_FED": State.PENDING,
    "SPECIAL_EXIT": State.PENDING,
    "EXPEDITING": State.PENDING,
    "RUNNING": State.RUNNING,
    "R": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "CG": State.RUNNING,
    "RESIZING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "STOPPED": State.RUNNING,
    "SUSPENDED": State.RUNNING,
    "POWER_UP_NODE": State.PENDING,
    "REQUEUED": State.REQUEUED,
    "RQ": State.REQUEUED,
    "COMPLETED": State.COMPLETED,
    "CD": State.COMPLETED,
    "FAILED": State.FAILED,
    "F": State.FAILED,
    "LAUNCH_FAILED": State.FAILED,
    "RECONFIG_FAIL": State.FAILED,
    "BOOT_FAIL": State.NODE_FAIL,
    "NODE_FAIL": State.NODE_FAIL,
    "CANCELLED": State.CANCELLED,
    "CA": State.CANCELLED,
    "REVOKED": State.CANCELLED,
    "TIMEOUT": State.TIMEOUT,
    "TO": State.TIMEOUT,
    "DEADLINE": State.TIMEOUT,
    "PREEMPTED": State.PREEMPTED,
    "PR": State.PREEMPTED,
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY,
    "OOM": State.OUT_OF_MEMORY,
}


def from_slurm(text: str) -> State:
    """The state that Slurm's text means: "CANCELLED by 1000" and the cut-off "OUT_OF_ME+" included."""
    words = text.split()
    if not words:
        return State.UNKNOWN
    word = words[0].upper()
    if word.endswith("+"):
        found = {state for name, state in _SLURM.items() if len(name) > 3 and name.startswith(word[:-1])}
        return found.pop() if len(found) == 1 else State.UNKNOWN
    return _SLURM.get(word, State.UNKNOWN)
