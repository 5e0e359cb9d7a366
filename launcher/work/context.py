"""What a worker knows of its place: plan, stage, rank, attempt, deadline, and how to report."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.plan import Plan, Stage
from launcher.record import Recorder, read_json, write_json
from launcher.rundir import RunDir

EXIT_REQUEUE = 75  # EX_TEMPFAIL: state is saved, run me again
EXIT_FATAL = 78  # EX_CONFIG: another attempt would end the same way
_NEAR_THE_END_SECONDS = 200  # USR2 comes 120 s before the time limit, up to 60 s earlier (render.SIGNAL_SECONDS)


class Requeue(Exception):
    """A stop was asked for and everything worth keeping is saved."""


@dataclass
class Context:
    """One rank of one attempt of one stage."""

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
        """Report work that is not optimizer steps: 12 of 64 "problems"."""
        self.event("progress", done=done, total=total, unit=unit)

    def finish(self, *, metrics: Mapping[str, Any], artifacts: Mapping[str, Any] | None = None) -> None:
        """Write the stage's result; call it on the main rank, last. Its existence means success."""
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
                where=f"resources.{self.stage.name}.time_limit",
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
        """Host and port where torch.distributed of this attempt meets; rank 0 chooses a free port."""
        path = self.files.rendezvous(self.stage.name, self.attempt)
        if self.is_main:
            with closing(socket.socket()) as probe:
                probe.bind(("", 0))
                port = probe.getsockname()[1]
            write_json(path, {"host": _own_host(self.stage.resources.nodes), "port": port})
        found = wait_for(lambda: read_json(path), timeout_seconds=timeout_seconds, what=f"rank 0's address in {path}")
        return str(found["host"]), int(found["port"])


def wait_for(ready: Callable[[], Any], *, timeout_seconds: float, what: str) -> Any:
    """Poll until `ready` returns something true. Raises TimeoutError that names what is late."""
    deadline = time.monotonic() + timeout_seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_seconds:.0f} s for {what}")
        time.sleep(0.2)
    return found


def from_environment(plan: Plan, stage_name: str, environ: Mapping[str, str]) -> Context:
    """The context that the job script and srun describe in SLURM_* variables."""
    files = RunDir(Path(plan.run_dir))
    rank = int(environ.get("SLURM_PROCID", "0"))
    attempt = int(environ.get("SWIFTLAUNCH_ATTEMPT", "1"))
    end_time = environ.get("SLURM_JOB_END_TIME", "")
    return Context(
        plan=plan,
        stage=plan.stage(stage_name),
        files=files,
        rank=rank,
        world_size=int(environ.get("SLURM_NTASKS", "1")),
        local_rank=int(environ.get("SLURM_LOCALID", "0")),
        attempt=attempt,
        recorder=Recorder(files.event_file(stage_name, attempt, rank), stage=stage_name, attempt=attempt, rank=rank),
        end_time=float(end_time) if end_time.isdigit() else None,
    )


def _own_host(nodes: int) -> str:
    if nodes == 1:
        return "127.0.0.1"
    return os.environ.get("SWIFTLAUNCH_RENDEZVOUS_HOST") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()
