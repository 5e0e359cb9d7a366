"""What a worker knows of its place: plan, stage, rank, attempt, deadline, and how to report."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.plan import Group, Plan, Stage
from launcher.record import Recorder, read_json, write_json
from launcher.rundir import RunDir
from launcher.work.rendezvous import Expected, Member, Rendezvous
from launcher.work.watchdog import Watchdog

EXIT_REQUEUE = 75  # EX_TEMPFAIL: state is saved, run me again
EXIT_FATAL = 78  # EX_CONFIG: another attempt would end the same way
_MARGIN_SECONDS = 30.0  # between the end of a last save and the end of the job
_NEAR_THE_END_SECONDS = 200  # USR2 comes 120 s before the time limit, up to 60 s earlier (render.SIGNAL_SECONDS)


class Requeue(Exception):
    """A stop was asked for and everything worth keeping is saved."""


@dataclass
class Context:
    """One rank of one attempt of one stage.

    In a stage with groups, `stage` is what this rank's group is and has, and `rank` and `world_size` count its ranks.
    """

    plan: Plan
    stage: Stage
    files: RunDir
    rank: int
    world_size: int
    local_rank: int
    attempt: int
    recorder: Recorder
    end_time: float | None  # Unix seconds at which the scheduler ends the job; None where it does not say
    stop_signal: int = field(default=0)
    job_id: str = ""  # the leader's, of a heterogeneous job
    group: str = ""  # "" in a stage without groups
    start: int = 1  # how often this group was started in this attempt
    nodes: tuple[str, ...] = ()  # all nodes of the stage; empty where the job script does not say

    def __post_init__(self) -> None:
        self.watchdog = Watchdog(self)

    @property
    def options(self) -> dict[str, Any]:
        return self.stage.options

    @property
    def is_main(self) -> bool:
        """Rank 0, the one that writes what is written once."""
        return self.rank == 0

    def event(self, kind: str, **fields: Any) -> None:
        """Append an event now."""
        self.recorder.event(kind, time.time(), **fields)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Report work that is not optimizer steps: 12 of 64 "problems"; a total of 0 is not known."""
        self.watchdog.beat(done, total)
        self.event("progress", done=done, total=total, unit=unit)

    def finish(self, *, metrics: Mapping[str, Any], artifacts: Mapping[str, Any] | None = None) -> None:
        """Write the stage's result; call it on the main rank of the leading group, last. Its existence means success.

        Raises ValueError in another group.
        """
        if self.stage.groups and self.group != self.stage.groups[0].name:
            raise ValueError(f"the result is group {self.stage.groups[0].name}'s to write, not group {self.group}'s")
        write_json(
            self.files.result(self.stage.name),
            {
                "stage": self.stage.name,
                "attempt": self.attempt,
                "metrics": dict(metrics),
                "artifacts": dict(artifacts or {}),
            },
        )

    def result_of(self, stage: str) -> dict[str, Any]:
        """The result of an earlier stage. Raises FileNotFoundError if it did not succeed."""
        result = read_json(self.files.result(stage))
        if result is None:
            raise FileNotFoundError(self.files.result(stage))
        return dict(result)

    def time_is_up(self, *, step_seconds: float, save_seconds: float) -> bool:
        """Whether the job ends before another step of that length could be done and saved."""
        needed = step_seconds + save_seconds + _MARGIN_SECONDS
        return self.end_time is not None and time.time() + needed > self.end_time

    def saved(self) -> None:
        """Say that what this attempt did is kept; attempts that keep nothing are bounded. Call it on any rank."""
        self.files.saved(self.stage.name, self.attempt).touch()

    @property
    def stop_requested(self) -> bool:
        """The scheduler asked this job to stop (USR2 before the time limit, TERM on preemption or cancel)."""
        return self.stop_signal != 0

    def raise_if_stopping(self) -> None:
        """For workers without state of their own to save: stop here, to be run again from the start.

        Raises Requeue; WorkerError where it was the time limit, since the next attempt would not get further.
        """
        if not self.stop_requested:
            return
        if self.end_time is None:  # then the signal has to say it: USR2 comes before the limit, TERM at preemption
            at_the_limit = self.stop_signal == signal.SIGUSR2
        else:
            at_the_limit = self.end_time - time.time() < _NEAR_THE_END_SECONDS
        if at_the_limit:
            minutes = self.stage.resources.time_limit_minutes
            raise WorkerError(
                f"{self.stage.name} is not done within its time limit of {minutes} minutes",
                where=f"resources.{self.stage.table}.time_limit",
                hint="raise it and submit again",
            )
        raise Requeue(signal.Signals(self.stop_signal).name)

    def catch_signals(self) -> None:
        """Turn USR2 and TERM into `stop_requested`."""

        def note(number: int, frame: object) -> None:
            self.stop_signal = self.stop_signal or number

        signal.signal(signal.SIGUSR2, note)
        signal.signal(signal.SIGTERM, note)

    def rendezvous(self, *, timeout_seconds: float = 300.0) -> tuple[str, int]:
        """Host and port where torch.distributed of this rank's group meets; rank 0 chooses a free port.

        Raises TimeoutError that names rank 0, Requeue if a stop is asked for meanwhile.
        """
        return self._rendezvous().own_world("torch", timeout_seconds=timeout_seconds)

    def announce(self, service: str, port: int) -> Member:
        """Tell all groups where this rank listens; do it after listening has begun."""
        return self._rendezvous().announce(service, port)

    def members(
        self,
        service: str,
        group: str,
        *,
        ranks: Sequence[int] | None = None,
        after: int = 0,
        timeout_seconds: float = 300.0,
    ) -> list[Member]:
        """Where these ranks of a group (None: all) offer a service, as announced since its newest start.

        A group that was started again has another `start`: with `after` only later ones count. Raises TimeoutError
        that names who is late and its node, Requeue if a stop is asked for meanwhile.
        """
        found = self._rendezvous()
        return found.members(service, group, ranks=ranks, after=after, timeout_seconds=timeout_seconds)

    def _rendezvous(self) -> Rendezvous:
        return Rendezvous(
            self.files.rendezvous(self.stage.name, self.attempt),
            job_id=self.job_id,
            attempt=self.attempt,
            group=self.group,
            start=self.start,
            rank=self.rank,
            host=_own_host(_nodes_of(self.stage)),
            expected=self._expected(),
            interrupt=self._stop_waiting,
        )

    def _expected(self) -> dict[str, Expected]:
        if not self.stage.groups:
            per_node = self.stage.resources.tasks_per_node
            return {"": Expected(tuple(self._node(rank // per_node) for rank in range(self.world_size)))}
        return {
            group.name: Expected(
                tuple(
                    self._node(group.first_node + rank // group.resources.tasks_per_node)
                    for rank in range(group.resources.world_size)
                )
            )
            for group in self.stage.groups
        }

    def _node(self, index: int) -> str:
        return self.nodes[index] if index < len(self.nodes) else ""

    def _stop_waiting(self) -> None:
        if self.stop_requested:
            raise Requeue(signal.Signals(self.stop_signal).name)


def from_environment(plan: Plan, stage_name: str, environ: Mapping[str, str]) -> Context:
    """The context that the job script and srun describe in SLURM_* and SWIFTLAUNCH_* variables."""
    files = RunDir(Path(plan.run_dir))
    rank = int(environ.get("SLURM_PROCID", "0"))
    attempt = int(environ.get("SWIFTLAUNCH_ATTEMPT", "1"))
    end_time = environ.get("SLURM_JOB_END_TIME", "")
    group = environ.get("SWIFTLAUNCH_GROUP", "")
    stage = plan.stage(stage_name)
    events = files.event_file(stage_name, attempt, rank, group)
    return Context(
        plan=plan,
        stage=_as_group(stage, stage.group(group)) if group else stage,
        files=files,
        rank=rank,
        world_size=int(environ.get("SLURM_NTASKS", "1")),
        local_rank=int(environ.get("SLURM_LOCALID", "0")),
        attempt=attempt,
        recorder=Recorder(events, stage=stage_name, attempt=attempt, rank=rank, group=group),
        end_time=float(end_time) if end_time.isdigit() else None,
        job_id=environ.get("SLURM_JOB_ID", ""),
        group=group,
        start=int(environ.get("SWIFTLAUNCH_GROUP_START", "1")),
        nodes=tuple(environ.get("SWIFTLAUNCH_NODES", "").split()),
    )


def _as_group(stage: Stage, group: Group) -> Stage:
    """The stage as the ranks of one of its groups see it."""
    return replace(
        stage,
        worker=group.worker,
        resources=group.resources,
        environment=group.environment,
        options=group.options,
    )


def _nodes_of(stage: Stage) -> int:
    """Number of nodes of all groups together."""
    return max((group.first_node + group.resources.nodes for group in stage.groups), default=stage.resources.nodes)


def node_name() -> str:
    """This node, as the scheduler calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _own_host(nodes: int) -> str:
    if nodes == 1:
        return "127.0.0.1"
    return os.environ.get("SWIFTLAUNCH_RENDEZVOUS_HOST") or node_name()
