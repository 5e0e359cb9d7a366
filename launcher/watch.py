"""Where runs stand now: one question to the scheduler, and what the run directories say."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.arrays import Noted, noted_jobs
from launcher.errors import SchedulerError, SwiftlaunchError, UserError
from launcher.plan import Plan, from_json
from launcher.registry import Registry, RunRow
from launcher.rundir import RunDir
from launcher.scheduler import Job, Scheduler, default_state_dir, open_scheduler
from launcher.standing import FAILED, RunStatus, point_states, run_status
from launcher.states import State
from launcher.sweep import point_files, read_sweep, split_point, sweep_above
from launcher.units import SECONDS_PER_DAY

# Seconds between two looks. Slurm's controller serves a whole centre, the local scheduler this user.
INTERVAL_SECONDS = {"local": 1.0, "slurm": 10.0}
_CLOCK_SKEW_SECONDS = 60.0  # between the file system's clock and the controller's


def find_run(known: Registry, text: str) -> RunRow:
    """The run that `text` means (see Registry.find); "RUN/7" is point 7 of a sweep. Raises UserError."""
    name, number = split_point(text)
    run = known.find(name)
    if number is None:
        return run
    files = RunDir(run.run_dir)
    sweep = read_sweep(files)
    if sweep is None:
        raise UserError(f"{run.run_id} is no sweep: it has no point {number}", hint=f"name it {run.run_id}")
    if number >= len(sweep.points):
        raise UserError(f"{run.run_id} has no point {number}", hint=f"its points are 0 to {len(sweep.points) - 1}")
    return replace(run, run_id=f"{run.run_id}/{number}", run_dir=point_files(files, sweep.points[number]).root)


def part_of_run(run: RunRow) -> tuple[Path, str]:
    """The folder of the whole run, and what the names of a point's stages end with: "/7", "" for a whole run."""
    above = sweep_above(run.run_dir)
    number = split_point(run.run_id)[1]
    return (run.run_dir, "") if above is None else (above.root, f"/{number}")


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
    return run_status(plan, run_dir, _jobs(plan, run_dir))


def _jobs(plan: Plan, run_dir: Path) -> dict[str, Job]:
    """The newest jobs of one run. Raises SchedulerError without an answer."""
    return noted_states([(plan, run_dir)], open_scheduler(plan.scheduler, state_dir=default_state_dir()))[run_dir]


def _jobs_or_trouble(plan: Plan, run_dir: Path) -> tuple[dict[str, Job], str]:
    """As `_jobs`; without an answer none, and who is to blame."""
    try:
        return _jobs(plan, run_dir), ""
    except SchedulerError as error:
        return {}, _trouble(error)


def active_jobs(run_dir: Path) -> dict[str, str]:
    """The jobs that wait or run, by what they do: a stage, or a stage of one point of a sweep ("train/7").

    Raises SchedulerError without an answer.
    """
    return {name: job_id for name, (state, job_id) in _states(run_dir).items() if job_id and not state.terminal}


def active_part(run: RunRow, stages: Sequence[str]) -> dict[str, str]:
    """As `active_jobs`, of these stages of a run or of a point of a sweep."""
    root, point = part_of_run(run)
    return {
        name: job_id
        for name, job_id in active_jobs(root).items()
        if name.partition("/")[0] in stages and name.endswith(point)
    }


def failed(run_dir: Path) -> set[str]:
    """What has failed, named as in `active_jobs`. Raises SchedulerError without an answer."""
    return {name for name, (state, _) in _states(run_dir).items() if state in FAILED}


def _states(run_dir: Path) -> dict[str, tuple[State, str]]:
    plan, files = load_plan(run_dir), RunDir(run_dir)
    jobs, sweep = _jobs(plan, run_dir), read_sweep(files)
    points = point_states(plan, files, sweep, jobs) if sweep else {}
    stages = run_status(plan, run_dir, jobs, points=points).stages
    each = sweep.each if sweep else ()
    return {stage.name: (stage.state, stage.job_id) for stage in stages if stage.name not in each} | points


def refresh_or_trouble(run_dir: Path) -> RunStatus:
    """As `refresh`; without an answer of the scheduler what the files prove, and `trouble` says who is to blame."""
    plan = load_plan(run_dir)
    jobs, trouble = _jobs_or_trouble(plan, run_dir)
    return run_status(plan, run_dir, jobs, trouble=trouble)


def refresh_points(run_dir: Path) -> tuple[RunStatus, dict[str, State]]:
    """As `refresh_or_trouble`, of a sweep; and the state of every stage of every point ("train/7")."""
    plan, files = load_plan(run_dir), RunDir(run_dir)
    jobs, trouble = _jobs_or_trouble(plan, run_dir)
    sweep = read_sweep(files)
    points = point_states(plan, files, sweep, jobs, trouble=bool(trouble)) if sweep else {}
    status = run_status(plan, run_dir, jobs, trouble=trouble, points=points)
    return status, {name: state for name, (state, _) in points.items()}


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
            jobs = noted_states(runs, open_scheduler(kind, state_dir=default_state_dir()))
        except SchedulerError as error:
            trouble = _trouble(error)
        found |= {run_dir: run_status(plan, run_dir, jobs[run_dir], trouble=trouble) for plan, run_dir in runs}
    return found


def _trouble(error: SchedulerError) -> str:
    return f"{error.message}: {error.hint}" if error.hint else error.message


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


def noted_states(runs: Sequence[tuple[Plan, Path]], scheduler: Scheduler) -> dict[Path, dict[str, Job]]:
    """The newest job of everything that has one (`arrays.noted_jobs`), by run directory: one question for all runs.

    A submission that was cut between the scheduler's answer and our note of it is found by its comment.
    """
    newest: dict[tuple[Path, str], Noted] = {}
    began = time.time()
    written: dict[Path, tuple[str, float]] = {}  # the name of a run, and when its folder was written
    for plan, run_dir in runs:
        files = RunDir(run_dir)
        written[run_dir] = plan.name, files.plan.stat().st_mtime
        began = min(began, written[run_dir][1] - SECONDS_PER_DAY)
        newest |= {(run_dir, name): job for name, job in noted_jobs(plan, files).items()}
    ids = sorted({job_id for job in newest.values() for job_id in (*job.earlier, job.job_id) if job_id})
    found = scheduler.jobs(ids, since=min(began, time.time() - 90 * SECONDS_PER_DAY)) if ids else {}
    jobs = {
        key: _that_counts(ours)
        for key, noted in newest.items()
        if noted.job_id in found
        and (
            ours := [
                found[job_id]
                for job_id in (*noted.earlier, noted.job_id)
                if job_id in found and _is_ours(found[job_id], noted, *written[key[0]])
            ]
        )
    }
    jobs |= _found_by_comment(scheduler, {key: job for key, job in newest.items() if key not in jobs}, began)
    return {run_dir: {stage: jobs[at, stage] for at, stage in jobs if at == run_dir} for _, run_dir in runs}


def _is_ours(job: Job, noted: Noted, run_name: str, written: float) -> bool:
    """Whether this job is the noted one: a controller that crashed gives the ids of jobs that it lost again.

    Sites may rewrite comments at submission (job_submit.lua); then the job's name tells, and that it is not older than
    the run, which was `written` then (Unix seconds). Not that it is no younger: a requeued job is submitted anew.
    """
    if job.comment in ("", noted.comment):
        return True
    called = noted.comment.rpartition(":")[2]
    too_old = job.submitted is not None and job.submitted < written - _CLOCK_SKEW_SECONDS
    return job.name == f"{run_name}:{called}" and not too_old and not job.comment.startswith("swiftlaunch:")


def _that_counts(jobs: Sequence[Job]) -> Job:
    """Of a stage's jobs, oldest first: the one that runs, else the first that will, else the last."""
    for states in ((State.RUNNING, State.REQUEUED), (State.PENDING,)):
        if found := next((job for job in jobs if job.state in states), None):
            return found
    return jobs[-1]


def _found_by_comment(
    scheduler: Scheduler, lost: Mapping[tuple[Path, str], Noted], since: float
) -> dict[tuple[Path, str], Job]:
    """The newest job with the comment of each one that was not found by its id."""
    if not lost:
        return {}
    matches = scheduler.find_all(sorted({job.comment for job in lost.values()}), since=since)
    found: dict[tuple[Path, str], Job] = {}
    tasks: dict[tuple[Path, str], str] = {}
    for key, noted in lost.items():
        if same := matches[noted.comment]:
            newest = max(same, key=lambda job: job.submitted or 0.0)
            if noted.task is None:
                found[key] = newest
            else:
                tasks[key] = f"{newest.job_id}_{noted.task}"
    jobs = scheduler.jobs(sorted(set(tasks.values())), since=since) if tasks else {}
    return found | {key: jobs[job_id] for key, job_id in tasks.items()}
