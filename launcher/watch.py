"""Where a run stands: the run directory's files and one refresh of the scheduler, put together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.errors import UserError
from launcher.plan import Plan, Stage, from_json, job_comment
from launcher.record import Event, read_events, read_json
from launcher.rundir import RunDir
from launcher.scheduler import Job, Scheduler, default_state_dir, open_scheduler
from launcher.states import State

_FAILED = (State.FAILED, State.TIMEOUT, State.NODE_FAIL, State.OUT_OF_MEMORY, State.PREEMPTED)

_EDGE_BYTES = 64 * 1024  # of each event file, at either end


@dataclass(frozen=True)
class StageStatus:
    """One stage now. Times are Unix seconds; `step` and `progress` are the newest events of their kind."""

    name: str
    worker: str
    state: State
    job_id: str
    attempts: int
    reason: str
    submitted: float | None
    started: float | None
    ended: float | None
    result: dict[str, Any] | None
    step: Event | None
    progress: Event | None
    error: str
    estimate_seconds: float | None
    endpoint: dict[str, Any] | None = None  # of a server that answers: base_url, host, port, model, engine, pid


@dataclass(frozen=True)
class RunStatus:
    """A run now. `state` is one word for the whole: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED or INCOMPLETE
    (stages that were never submitted, and nothing that is running)."""

    run_id: str
    name: str
    site: str
    state: str
    run_dir: Path
    stages: tuple[StageStatus, ...]
    warnings: tuple[str, ...]

    @property
    def ended(self) -> bool:
        return self.state not in ("PENDING", "RUNNING")

    @property
    def succeeded(self) -> bool:
        return self.state == "COMPLETED"

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["run_dir"] = str(self.run_dir)
        return data


def load_plan(run_dir: Path) -> Plan:
    """The plan of a run directory. Raises UserError where there is none."""
    path = RunDir(run_dir).plan
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        what = "is no run directory" if run_dir.is_dir() else "is gone: moved, deleted, or on a disk that is not there"
        raise UserError(
            f"{run_dir} {what}",
            hint=f"end what may still run: swiftlaunch cancel {run_dir.name}; then: swiftlaunch runs --rebuild",
        ) from None
    except ValueError as error:
        raise UserError(str(error), where=str(path)) from error


def refresh(run_dir: Path) -> RunStatus:
    """The run's state from its files and one question to the scheduler."""
    plan = load_plan(run_dir)
    files = RunDir(run_dir)
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir())
    jobs = stage_jobs(plan, scheduler, files)
    events: dict[str, list[Event]] = {}
    for event in read_events(files.events, edge_bytes=_EDGE_BYTES):
        events.setdefault(str(event.get("stage")), []).append(event)
    stages: dict[str, StageStatus] = {}  # in the plan's order: each after those it depends on
    for stage in plan.stages:
        vain = any(stages[name].state in (*_FAILED, State.CANCELLED) for name in stage.depends_on)
        own = events.get(stage.name, [])
        stages[stage.name] = stage_status(files, stage, jobs.get(stage.name), own, waits_in_vain=vain)
    found = tuple(stages.values())
    return RunStatus(plan.run_id, plan.name, plan.site, run_state(found), run_dir, found, plan.warnings)


def follow(run_dir: Path, interval: float = 1.0) -> Iterator[RunStatus]:
    """The run's state again and again, `interval` seconds apart, until it has ended (that one included)."""
    while True:
        status = refresh(run_dir)
        yield status
        if status.ended:
            return
        time.sleep(interval)


def stage_jobs(plan: Plan, scheduler: Scheduler, files: RunDir) -> dict[str, Job]:
    """The newest job of each stage that has one.

    A submission that was cut between the scheduler's answer and our note of it is found by its comment.
    """
    noted: dict[str, list[str]] = read_json(files.jobs) or {}
    newest = {stage: ids[-1] for stage, ids in noted.items() if ids}
    found = scheduler.jobs(list(newest.values())) if newest else {}
    # a job with another comment is not ours: a controller that crashed gives the ids of jobs that it lost again
    jobs = {
        stage: found[job_id]
        for stage, job_id in newest.items()
        if job_id in found and found[job_id].comment in ("", job_comment(plan.run_id, stage))
    }
    for stage in noted:
        if stage not in jobs:
            matches = scheduler.find(job_comment(plan.run_id, stage))
            if matches:
                jobs[stage] = max(matches, key=lambda job: job.submitted or 0.0)
    return jobs


def run_state(stages: tuple[StageStatus, ...]) -> str:
    """One word for the whole run."""
    states = [stage.state for stage in stages]
    if all(state is State.COMPLETED for state in states):
        return "COMPLETED"
    if any(state in (State.RUNNING, State.REQUEUED) for state in states):
        return "RUNNING"
    active = any(not state.terminal and state is not State.NOT_SUBMITTED for state in states)
    if active:
        return "RUNNING" if State.COMPLETED in states else "PENDING"
    if any(state in _FAILED for state in states):
        return "FAILED"
    return "CANCELLED" if State.CANCELLED in states else "INCOMPLETE"


def stage_status(
    files: RunDir, stage: Stage, job: Job | None, events: list[Event], *, waits_in_vain: bool = False
) -> StageStatus:
    """One stage from its files, its newest job and its events by time; `waits_in_vain`: a stage before it failed."""
    result = read_json(files.result(stage.name))
    state = job.state if job else State.NOT_SUBMITTED
    reason = job.reason if job else ""
    if result is not None:
        state, reason = State.COMPLETED, ""
    elif state is State.COMPLETED:
        state, reason = State.FAILED, "the job ended with code 0 but wrote no result"
    elif state is State.UNKNOWN:
        state = _forgotten(files, stage, waits_in_vain=waits_in_vain)
    ended = job.ended if job and state.terminal else None
    if result is not None and ended is None:  # the job script is still ending, or the scheduler has forgotten the job
        ended = files.result(stage.name).stat().st_mtime
    attempts = max((int(event["attempt"]) for event in events), default=0)
    begun = [event["time"] for event in events if event["kind"] == "attempt_started"]
    return StageStatus(
        name=stage.name,
        worker=stage.worker,
        state=state,
        job_id=job.job_id if job else "",
        attempts=attempts,
        reason=reason,
        submitted=job.submitted if job else None,
        started=min(begun) if begun else (job.started if job else None),
        ended=ended,
        result=result,
        step=_newest(events, "step"),
        progress=_newest(events, "progress"),
        error=_error(files, stage.name, attempts) if state in _FAILED else "",
        estimate_seconds=stage.estimate.seconds,
        endpoint=read_json(files.endpoint(stage.name)) if state is State.RUNNING and stage.worker == "serve" else None,
    )


def _forgotten(files: RunDir, stage: Stage, *, waits_in_vain: bool) -> State:
    """What became of a job that the scheduler does not know (any more), where the run directory proves it.

    Without accounting Slurm forgets a job minutes after its end; followers would wait for ever.
    """
    if waits_in_vain or files.cancelled(stage.name).exists():
        return State.CANCELLED
    attempts = files.batch_log(stage.name).parent
    submitted = files.jobs.stat().st_mtime if files.jobs.exists() else 0.0
    fatal = [path for path in attempts.glob("attempt-*/fatal-*.json") if path.stat().st_mtime > submitted]
    crashes = len(list(attempts.glob("attempt-*/crashed")))  # as the job script counts; `resume` forgives them
    return State.FAILED if fatal or crashes >= stage.max_attempts else State.UNKNOWN


def _newest(events: list[Event], kind: str) -> Event | None:
    return next((event for event in reversed(events) if event["kind"] == kind), None)


def _error(files: RunDir, stage: str, attempts: int) -> str:
    """What the first failed rank of the newest attempt said of itself."""
    folder = files.attempt(stage, attempts)
    reports = sorted(folder.glob("fatal-*.json")) + sorted(folder.glob("failure-*.json"))
    for path in reports:
        report = read_json(path)
        if report:
            return f"rank {report['rank']}: {report['error']}"
    return ""
