"""Where a run stands: the run directory's files and one refresh of the scheduler, put together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import SchedulerError, SwiftlaunchError, UserError
from launcher.plan import Plan, Stage, from_json, job_comment
from launcher.record import Event, read_events, read_json
from launcher.rundir import RunDir
from launcher.scheduler import Job, Scheduler, default_state_dir, open_scheduler
from launcher.scheduler.reasons import in_words
from launcher.states import State

_FAILED = (State.FAILED, State.TIMEOUT, State.NODE_FAIL, State.OUT_OF_MEMORY, State.PREEMPTED)

_EDGE_BYTES = 64 * 1024  # of each event file, at either end
_A_DAY = 86400.0

_ENDED = {  # how a stage ended, as one says it of the cause of another's end
    State.FAILED: "failed",
    State.TIMEOUT: "ran out of time",
    State.NODE_FAIL: "lost its node",
    State.OUT_OF_MEMORY: "ran out of memory",
    State.PREEMPTED: "was preempted",
    State.CANCELLED: "was cancelled",
}


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
    why: str = ""  # `reason` in words: why it waits and what can be done, or which stage it was cancelled for
    expected: float | None = None  # when the scheduler expects a waiting stage to start


@dataclass(frozen=True)
class RunStatus:
    """A run now. `state` is one word for the whole: PENDING, RUNNING, COMPLETED, FAILED, CANCELLED, INCOMPLETE
    (stages that were never submitted, and nothing that is running) or UNKNOWN (the scheduler does not answer)."""

    run_id: str
    name: str
    site: str
    state: str
    run_dir: Path
    stages: tuple[StageStatus, ...]
    warnings: tuple[str, ...]
    trouble: str = ""  # why the scheduler could not be asked: states are then what the run directory proves

    @property
    def ended(self) -> bool:
        return self.state not in ("PENDING", "RUNNING", "UNKNOWN")

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
        if RunDir(run_dir).unwritten.exists():
            raise UserError(
                f"{run_dir.name} was cut while its folder was written, before anything was submitted",
                hint=f"take it away: swiftlaunch submit --resume {run_dir.name}; then submit its recipe again",
            ) from None
        what = "is no run directory" if run_dir.is_dir() else "is gone: moved, deleted, or on a disk that is not there"
        raise UserError(
            f"{run_dir} {what}",
            hint=f"end what may still run: swiftlaunch cancel {run_dir.name}; then: swiftlaunch runs --rebuild",
        ) from None
    except ValueError as error:
        raise UserError(str(error), where=str(path)) from error


def refresh(run_dir: Path) -> RunStatus:
    """The run's state from its files and one question to the scheduler. Raises SchedulerError without an answer."""
    plan = load_plan(run_dir)
    jobs = stage_jobs([(plan, run_dir)], open_scheduler(plan.scheduler, state_dir=default_state_dir()))
    return run_status(plan, run_dir, jobs[run_dir])


def refresh_or_trouble(run_dir: Path) -> RunStatus:
    """As `refresh`; without an answer of the scheduler what the files prove, and `trouble` says who is to blame."""
    try:
        return refresh(run_dir)
    except SchedulerError as error:
        return run_status(load_plan(run_dir), run_dir, {}, trouble=_trouble(error))


def refresh_all(run_dirs: Iterable[Path]) -> dict[Path, RunStatus | SwiftlaunchError]:
    """The states of several runs, with one question for all of them to each scheduler; an error for a broken run."""
    found: dict[Path, RunStatus | SwiftlaunchError] = {}
    by_scheduler: dict[str, list[tuple[Plan, Path]]] = {}
    for run_dir in run_dirs:
        try:
            plan = load_plan(run_dir)
        except UserError as error:
            found[run_dir] = error
        else:
            by_scheduler.setdefault(plan.scheduler, []).append((plan, run_dir))
    for kind, runs in by_scheduler.items():
        jobs, trouble = {run_dir: dict[str, Job]() for _, run_dir in runs}, ""
        try:
            jobs = stage_jobs(runs, open_scheduler(kind, state_dir=default_state_dir()))
        except SchedulerError as error:
            trouble = _trouble(error)
        found |= {run_dir: run_status(plan, run_dir, jobs[run_dir], trouble=trouble) for plan, run_dir in runs}
    return found


def _trouble(error: SchedulerError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message


def run_status(plan: Plan, run_dir: Path, jobs: Mapping[str, Job], *, trouble: str = "") -> RunStatus:
    """The run's state from its files and the newest job of each stage."""
    files = RunDir(run_dir)
    events: dict[str, list[Event]] = {}
    for event in read_events(files.events, edge_bytes=_EDGE_BYTES):
        events.setdefault(str(event.get("stage")), []).append(event)
    submitted = files.jobs.exists()
    stages: dict[str, StageStatus] = {}  # in the plan's order: each after those it depends on
    for stage in plan.stages:
        before = [stages[name] for name in stage.depends_on]
        vain = any(earlier.state in (*_FAILED, State.CANCELLED) for earlier in before)
        job = jobs.get(stage.name) or (Job("") if trouble and submitted else None)  # then its state is unknown
        status = stage_status(files, stage, job, events.get(stage.name, []), waits_in_vain=vain)
        stages[stage.name] = replace(status, why=_why(status, before))
    found = tuple(stages.values())
    state = "UNKNOWN" if trouble and any(not stage.state.terminal for stage in found) else run_state(found)
    return RunStatus(plan.run_id, plan.name, plan.site, state, run_dir, found, plan.warnings, trouble)


def _why(stage: StageStatus, before: list[StageStatus]) -> str:
    """Why a stage waits, or for which stage before it it was cancelled, in words."""
    failed = next((earlier for earlier in before if earlier.state in (*_FAILED, State.CANCELLED)), None)
    if failed and stage.state in (State.CANCELLED, State.PENDING):
        if failed.state is State.CANCELLED and failed.why:
            return failed.why  # the first one of the chain that failed
        return f"{failed.name} {_ENDED[failed.state]}"
    if stage.state not in (State.PENDING, State.REQUEUED):
        return ""
    waits_for = [earlier.name for earlier in before if earlier.state is not State.COMPLETED]
    if stage.reason == "Dependency" and waits_for:
        return f"waits for {' and '.join(waits_for)}"
    return in_words(stage.reason)


def follow(run_dir: Path, interval: float = 1.0) -> Iterator[RunStatus]:
    """The run's state again and again, `interval` seconds apart, until it has ended (that one included).

    A scheduler that does not answer for a while is waited for: the status says so meanwhile.
    """
    status = refresh(run_dir)
    while True:
        yield status
        if status.ended and not status.trouble:
            return
        time.sleep(interval)
        try:
            status = refresh(run_dir)
        except SchedulerError as error:
            status = replace(status, trouble=_trouble(error))


def stage_jobs(runs: Sequence[tuple[Plan, Path]], scheduler: Scheduler) -> dict[Path, dict[str, Job]]:
    """The newest job of each stage that has one, by run directory: one question for all runs.

    A submission that was cut between the scheduler's answer and our note of it is found by its comment.
    """
    newest: dict[tuple[Path, str], str] = {}
    comments: dict[tuple[Path, str], str] = {}
    began = time.time()
    for plan, run_dir in runs:
        files = RunDir(run_dir)
        began = min(began, files.plan.stat().st_mtime - _A_DAY)
        for stage, ids in (read_json(files.jobs) or {}).items():
            if ids:
                newest[run_dir, stage] = ids[-1]  # empty: not answered yet
                comments[run_dir, stage] = job_comment(plan.run_id, stage)
    ids = sorted({job_id for job_id in newest.values() if job_id})
    found = scheduler.jobs(ids, since=min(began, time.time() - 90 * _A_DAY)) if ids else {}
    # a job with another comment is not ours: a controller that crashed gives the ids of jobs that it lost again
    jobs = {
        key: found[job_id]
        for key, job_id in newest.items()
        if job_id in found and found[job_id].comment in ("", comments[key])
    }
    lost = [key for key in newest if key not in jobs]
    matches = scheduler.find_all([comments[key] for key in lost], since=began) if lost else {}
    for key in lost:
        if same := matches[comments[key]]:
            jobs[key] = max(same, key=lambda job: job.submitted or 0.0)
    return {run_dir: {stage: jobs[at, stage] for at, stage in jobs if at == run_dir} for _, run_dir in runs}


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
        expected=job.expected if job and state is State.PENDING else None,
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


def failure_report(files: RunDir, stage: str, attempt: int) -> dict[str, Any]:
    """What the first failed rank of an attempt wrote down: rank, error, error_class, exit_code. Empty without one."""
    folder = files.attempt(stage, attempt)
    for path in sorted(folder.glob("fatal-*.json")) + sorted(folder.glob("failure-*.json")):
        if report := read_json(path):
            return dict(report)
    return {}


def _error(files: RunDir, stage: str, attempts: int) -> str:
    """What the first failed rank of the newest attempt said of itself."""
    report = failure_report(files, stage, attempts)
    return f"rank {report['rank']}: {report['error']}" if report else ""
