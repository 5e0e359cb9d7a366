"""Where a run stands, from its files and the newest jobs of what it does; the scheduler is not asked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.arrays import of_point, stages_of_point, units
from launcher.failures import Failure, first_failure
from launcher.plan import Plan, Stage, table_of
from launcher.record import Event, read_events, read_json
from launcher.rundir import RunDir
from launcher.scheduler import Job
from launcher.scheduler.reasons import in_words
from launcher.states import State
from launcher.sweep import SELECT, Sweep, point_files, read_sweep, sweep_above

FAILED = (State.FAILED, State.TIMEOUT, State.NODE_FAIL, State.OUT_OF_MEMORY, State.PREEMPTED)

_MOST_TELLING = (  # the state of several points in one
    State.RUNNING,
    State.REQUEUED,
    State.PENDING,
    State.UNKNOWN,
    *FAILED,
    State.CANCELLED,
    State.NOT_SUBMITTED,
    State.COMPLETED,
)

_EDGE_BYTES = 64 * 1024  # of each event file, at either end

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
    """One stage now. Times are Unix seconds; `step`, `progress`, `ranks`, `spike` and
    `validation` are the newest events of their kind."""

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
    setback: str = ""  # of a stage that goes on: which earlier attempt failed last, and why
    excluded: tuple[str, ...] = ()  # nodes that further attempts are kept away from
    # of a stage of a sweep's points: how many are in each state; `result` is then the best one's, once it is chosen
    points: dict[str, int] | None = None
    ranks: Event | None = None  # the newest look at all training ranks: memory, and which one is slow
    spike: Event | None = None  # the newest loss spike
    validation: Event | None = None  # the newest loss of what is not trained on


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


def run_status(
    plan: Plan,
    run_dir: Path,
    jobs: Mapping[str, Job],
    *,
    trouble: str = "",
    points: Mapping[str, tuple[State, str]] | None = None,
) -> RunStatus:
    """The run's state from its files and the newest job of each stage.

    `points` is what `point_states` has found, for callers that know it: it looks at every point's files.
    """
    files = RunDir(run_dir)
    sweep = read_sweep(files)
    events: dict[str, list[Event]] = {}
    for event in read_events(files.events, edge_bytes=_EDGE_BYTES):
        events.setdefault(str(event.get("stage")), []).append(event)
    submitted = files.jobs.exists() or sweep_above(run_dir) is not None
    if points is None:
        points = point_states(plan, files, sweep, jobs, trouble=bool(trouble)) if sweep else {}
    stages: dict[str, StageStatus] = {}  # in the plan's order: each after those it depends on
    for stage in stages_of_point(plan, files):
        before = [stages[name] for name in stage.depends_on if name in stages]
        if stage.name == SELECT:  # a point that failed does not keep it from choosing among the others
            before = [earlier for earlier in before if not earlier.state.terminal]
        if sweep and stage.name in sweep.each:
            stages[stage.name] = _points_status(files, sweep, stage, points, jobs)
            continue
        vain = any(earlier.state in (*FAILED, State.CANCELLED) for earlier in before)
        job = jobs.get(stage.name) or (Job("") if trouble and submitted else None)  # then its state is unknown
        place, own = files, events.get(stage.name, [])
        if sweep and stage.name in sweep.best and files.best.exists():
            place = RunDir(files.best)
            own = read_events(place.events, stage=stage.name, edge_bytes=_EDGE_BYTES)
        status = stage_status(place, stage, job, own, waits_in_vain=vain)
        stages[stage.name] = replace(status, why=_why(status, before))
    found = tuple(stages.values())
    state = "UNKNOWN" if trouble and any(not stage.state.terminal for stage in found) else run_state(found)
    return RunStatus(plan.run_id, plan.name, plan.site, state, run_dir, found, plan.warnings, trouble)


def _why(stage: StageStatus, before: list[StageStatus]) -> str:
    """Why a stage waits, or for which stage before it it was cancelled, in words."""
    failed = next((earlier for earlier in before if earlier.state in (*FAILED, State.CANCELLED)), None)
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


def point_states(
    plan: Plan, files: RunDir, sweep: Sweep, jobs: Mapping[str, Job], *, trouble: bool = False
) -> dict[str, tuple[State, str]]:
    """State and job of every stage of every point of a sweep ("train/7"); reads no more files than it must."""
    states: dict[str, tuple[State, str]] = {}
    for unit in units(plan, sweep, files):
        if unit.point is None or unit.files is None:
            continue
        job = jobs.get(unit.name) or (Job("") if trouble else None)
        state = job.state if job else State.NOT_SUBMITTED
        if state is not State.PENDING:  # that one has no result, or nobody would have submitted it
            vain = any(states[name][0] in (*FAILED, State.CANCELLED) for name in unit.after if name in states)
            done = unit.files.result(unit.stage.name).exists()
            state, _ = _state(unit.files, unit.stage, job, done=done, waits_in_vain=vain)
        states[unit.name] = (state, job.job_id if job else "")
    return states


def _points_status(
    files: RunDir, sweep: Sweep, stage: Stage, points: Mapping[str, tuple[State, str]], jobs: Mapping[str, Job]
) -> StageStatus:
    """A stage of all points in one: running while one runs, and failed if one has failed."""
    own = {name: points[name] for point in sweep.points if (name := of_point(stage.name, point.number)) in points}
    states = [state for state, _ in own.values()]
    counts = {state.value: states.count(state) for state in State if state in states}
    known = [jobs[name] for name in own if name in jobs]
    waits = next((job for job in known if job.state is State.PENDING), None)
    whole = min(states, key=_MOST_TELLING.index, default=State.NOT_SUBMITTED)
    if whole in (State.PENDING, State.UNKNOWN) and State.COMPLETED in states:
        whole = State.RUNNING
    ended = [job.ended for job in known if job.ended is not None]
    return StageStatus(
        name=stage.name,
        worker=stage.worker,
        state=whole,
        job_id=" ".join(dict.fromkeys(job_id.partition("_")[0] for _, job_id in own.values() if job_id)),
        attempts=0,
        reason=waits.reason if waits else "",
        submitted=min((job.submitted for job in known if job.submitted is not None), default=None),
        started=min((job.started for job in known if job.started is not None), default=None),
        ended=max(ended, default=None) if whole.terminal else None,
        result=read_json(RunDir(files.best).result(stage.name)),
        step=None,
        progress=None,
        error=_first_error(files, sweep, stage, own),
        estimate_seconds=stage.estimate.seconds,
        points=counts,
    )


def _first_error(files: RunDir, sweep: Sweep, stage: Stage, states: Mapping[str, tuple[State, str]]) -> str:
    """What the first failed point's rank said of itself."""
    for point in sweep.points:
        if states.get(of_point(stage.name, point.number), (State.PENDING, ""))[0] in FAILED:
            own = point_files(files, point)
            begun = own.batch_log(stage.name).parent.glob("attempt-*")
            said = _error(own, stage.name, max((int(path.name.rpartition("-")[2]) for path in begun), default=1))
            return f"point {point.number}: {said}" if said else f"point {point.number} failed"
    return ""


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
    if any(state in FAILED for state in states):
        return "FAILED"
    return "CANCELLED" if State.CANCELLED in states else "INCOMPLETE"


def stage_status(
    files: RunDir, stage: Stage, job: Job | None, events: list[Event], *, waits_in_vain: bool = False
) -> StageStatus:
    """One stage from its files, its newest job and its events by time; `waits_in_vain`: a stage before it failed."""
    result = read_json(files.result(stage.name))
    state, reason = _state(files, stage, job, done=result is not None, waits_in_vain=waits_in_vain)
    ended = job.ended if job and state.terminal else None
    if result is not None and ended is None:  # the job script is still ending, or the scheduler has forgotten the job
        ended = files.result(stage.name).stat().st_mtime
    if stage.groups:  # how far a stage is, its first group says
        events = [event for event in events if event.get("group") == stage.groups[0].name]
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
        ranks=_newest(events, "ranks"),
        spike=_newest(events, "spike"),
        validation=_newest(events, "validation"),
        error=_error(files, stage.name, attempts) if state in FAILED else "",
        setback="" if state.terminal else _setback(files, stage.name, attempts),
        excluded=_excluded(files, stage.name),
        estimate_seconds=stage.estimate.seconds,
        expected=job.expected if job and state is State.PENDING else None,
        endpoint=read_json(files.endpoint(stage.name)) if state is State.RUNNING and stage.worker == "serve" else None,
    )


def _state(files: RunDir, stage: Stage, job: Job | None, *, done: bool, waits_in_vain: bool) -> tuple[State, str]:
    """A stage's state and the reason for it: what the run directory proves counts for more than its job."""
    state = job.state if job else State.NOT_SUBMITTED
    if done:
        return State.COMPLETED, ""
    if state is State.COMPLETED:
        return State.FAILED, "the job ended with code 0 but wrote no result"
    if state is State.UNKNOWN:
        state = _forgotten(files, stage, waits_in_vain=waits_in_vain)
    return state, job.reason if job else ""


def _forgotten(files: RunDir, stage: Stage, *, waits_in_vain: bool) -> State:
    """What became of a job that the scheduler does not know (any more), where the run directory proves it.

    Without accounting Slurm forgets a job minutes after its end; followers would wait for ever.
    """
    if waits_in_vain or files.cancelled(stage.name).exists():
        return State.CANCELLED
    if files.given_up(stage.name).exists():  # `resume` takes it away
        return State.FAILED
    attempts = files.batch_log(stage.name).parent
    above = sweep_above(files.root)
    noted = above.arrays if above else files.jobs
    submitted = noted.stat().st_mtime if noted.exists() else 0.0
    ranks = [group.name for group in stage.groups if group.essential] or ["."]
    found = [path for name in ranks for path in attempts.glob(f"attempt-*/{name}/fatal-*.json")]
    fatal = [path for path in found if path.stat().st_mtime > submitted]
    crashes = len(list(attempts.glob("attempt-*/crashed")))  # as the job script counts; `resume` forgives them
    return State.FAILED if fatal or crashes >= stage.max_attempts else State.UNKNOWN


def _newest(events: list[Event], kind: str) -> Event | None:
    return next((event for event in reversed(events) if event["kind"] == kind), None)


def ended_by(files: RunDir, stage: str, attempt: int) -> Path:
    """The folder of the ranks that decided how an attempt ended: those of one group, where the stage has groups."""
    try:
        return files.ranks(stage, attempt, files.ended_by(stage, attempt).read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return files.ranks(stage, attempt)


def failure_report(files: RunDir, stage: str, attempt: int) -> dict[str, Any]:
    """What is known of the rank that failed first in an attempt: rank, node, kind, error, hint; and where it could
    write a report, error_class and exit_code. Empty where nothing is known."""
    folder = ended_by(files, stage, attempt)
    failure = first_failure(folder, table_of(stage))
    if failure is None:
        return {}
    own = [folder / f"{name}-{failure.rank}.json" for name in ("fatal", "failure")]
    return next((dict(report) for path in own if (report := read_json(path))), asdict(failure))


def newest_failure(files: RunDir, stage: str, attempt: int) -> tuple[int, Failure] | None:
    """The newest attempt up to this one that failed, and the rank that failed first in it."""
    for number in range(attempt, 0, -1):
        if failure := first_failure(ended_by(files, stage, number), table_of(stage)):
            return number, failure
    return None


def _error(files: RunDir, stage: str, attempts: int) -> str:
    """What the first failed rank of the newest attempt said of itself, and what can be changed."""
    found = newest_failure(files, stage, attempts)
    if found is None:
        return _given_up(files, stage)
    hint = f"\n  hint: {found[1].hint}" if found[1].hint else ""
    return found[1].text + hint


def _setback(files: RunDir, stage: str, attempts: int) -> str:
    found = newest_failure(files, stage, attempts)
    return f"attempt {found[0]} failed ({found[1].kind}): {found[1].text}" if found else ""


def _excluded(files: RunDir, stage: str) -> tuple[str, ...]:
    path = files.excluded(stage)
    return tuple(path.read_text(encoding="utf-8").split()) if path.exists() else ()


def _given_up(files: RunDir, stage: str) -> str:
    path = files.given_up(stage)
    return f"not run again: {path.read_text(encoding='utf-8').strip()}" if path.exists() else ""
