"""What every scheduler offers: submit a script, look jobs up, cancel them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launcher.errors import SchedulerError
from launcher.states import State


@dataclass(frozen=True)
class Job:
    """A job as its scheduler knows it now. Times are Unix seconds, None where it has not come to that.

    `job_id` is Slurm's text: "12", and "12_3" for a task of an array. `signal` is the signal that ended the
    batch shell (then `exit_code` is 0 as in sacct), None without one.
    """

    job_id: str
    name: str = ""
    state: State = State.UNKNOWN
    exit_code: int | None = None
    signal: int | None = None
    restarts: int = 0
    nodes: str = ""
    reason: str = ""
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    comment: str = ""
    expected: float | None = None  # when the scheduler expects a waiting job to start


class NotKept(SchedulerError):
    """The scheduler keeps no record of what is asked for: a Slurm without accounting."""


@dataclass(frozen=True)
class Use:
    """One run of a job: what it was given and what it used. A requeued job has several. None: not known.

    `cpus` and `gpus` are of all nodes together, memory is per node. `peak_mib` is the largest process at its peak,
    times the tasks of a node: what a node needs at most.
    """

    job_id: str
    state: State
    seconds: float
    nodes: int
    cpus: int
    gpus: int = 0
    memory_mib: float | None = None
    limit_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True)
class Machine:
    """What the local scheduler may hand out: `nodes` equal nodes; the other figures are per node."""

    nodes: int
    cpus: int
    memory_mib: int
    gpus: int = 0


class Scheduler(Protocol):
    """Raises UserError for what the user can mend, SchedulerError where the scheduler fails to answer."""

    def submit(
        self, script: Path, *, depends_on: Sequence[str] = (), dependency_kind: str = "afterok", array: str = ""
    ) -> str:
        """Hand in a batch script; returns the job id. `array` is sbatch's --array text, "0-9%2".

        An id of `depends_on` may have a kind of its own: "aftercorr:12".
        """
        ...

    def largest_array(self) -> int:
        """How many tasks an array may have, numbered from 0; 0 where there are no arrays."""
        ...

    def jobs(self, ids: Sequence[str], *, since: float | None = None) -> dict[str, Job]:
        """The jobs of these ids in one refresh; an id that the scheduler does not know is UNKNOWN.

        The bare id of an array gives all its tasks as one job (see `whole_array`). `since` (Unix seconds): none of
        them was submitted before.
        """
        ...

    def find(self, comment: str, *, since: float | None = None) -> list[Job]:
        """All jobs that were submitted with this --comment, oldest first; `since` as for `jobs`."""
        ...

    def find_all(self, comments: Sequence[str], *, since: float | None = None) -> dict[str, list[Job]]:
        """As `find`, for several comments in one refresh."""
        ...

    def find_below(self, prefix: str, *, since: float | None = None) -> list[Job]:
        """As `find`, for all comments that start like this."""
        ...

    def use(self, ids: Sequence[str], *, since: float | None = None) -> list[Use]:
        """What the jobs of these ids have used so far, each run of each, in their order; `since` as for `jobs`.

        Raises NotKept where nothing is kept on it.
        """
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """End these jobs; ids of jobs that have ended already are passed over."""
        ...


def with_kind(dependency: str, default: str) -> tuple[str, str]:
    """ "12" -> (default, "12"), "aftercorr:12" -> ("aftercorr", "12")."""
    kind, _, job_id = dependency.rpartition(":")
    return kind or default, job_id


_WORST_FIRST = (
    State.RUNNING,
    State.PENDING,
    State.REQUEUED,
    State.UNKNOWN,
    State.NOT_SUBMITTED,
    State.NODE_FAIL,
    State.OUT_OF_MEMORY,
    State.TIMEOUT,
    State.FAILED,
    State.PREEMPTED,
    State.CANCELLED,
    State.COMPLETED,
)


def whole_array(array_id: str, tasks: Sequence[Job]) -> Job:
    """The tasks of an array as one job: running while one runs, ended when all have, as bad as its worst task."""
    if not tasks:
        raise ValueError("an array has at least one task")
    worst = min(tasks, key=lambda task: _WORST_FIRST.index(task.state))
    submitted = [task.submitted for task in tasks if task.submitted is not None]
    started = [task.started for task in tasks if task.started is not None]
    ended = [task.ended for task in tasks if task.ended is not None]
    return Job(
        job_id=array_id,
        name=worst.name,
        state=worst.state,
        exit_code=worst.exit_code,
        signal=worst.signal,
        restarts=max(task.restarts for task in tasks),
        nodes=worst.nodes,
        reason=worst.reason,
        submitted=min(submitted, default=None),
        started=min(started, default=None),
        ended=max(ended, default=None) if worst.state.terminal else None,
        expected=min((task.expected for task in tasks if task.expected is not None), default=None),
        comment=next((task.comment for task in tasks if task.comment), ""),  # accounting learns it at the end
    )
