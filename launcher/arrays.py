"""The jobs of a run as they were noted down, and how a sweep's jobs are submitted: an array per stage.

What has a job of its own is called by its stage's name; in a sweep a stage of one point is called "train/7".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.plan import Plan, Stage, job_comment
from launcher.record import read_json, write_json, write_text
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler
from launcher.scheduler.process import hiding
from launcher.sweep import (
    SELECT,
    ArrayJob,
    Point,
    Sweep,
    array_name,
    point_files,
    read_arrays,
    read_sweep,
    sweep_above,
    task_text,
    write_arrays,
)

# How often, a second apart, a job is looked for whose submission was cut: a controller that hung may still make it.
LOOKS = 3


@dataclass(frozen=True)
class Noted:
    """The newest job that was asked for; `job_id` is empty while nobody knows whether there is one.

    `task` is the task that it is of the array with this comment. `earlier` are the jobs before it, oldest first, of a
    stage that goes on in further jobs.
    """

    job_id: str
    comment: str
    task: int | None = None
    earlier: tuple[str, ...] = ()


def of_point(stage: str, number: int) -> str:
    """What a stage of one point of a sweep is called."""
    return f"{stage}/{number}"


def noted_jobs(plan: Plan, files: RunDir) -> dict[str, Noted]:
    """The newest job of everything that has one: stages, and in a sweep also its points' stages.

    Of a run that is one point of a sweep: its stages, those included that it shares with the others.
    """
    if above := sweep_above(files.root):
        return _jobs_of_point(above, plan, files)
    run_id, sweep = plan.run_id, read_sweep(files)
    chained = {stage.name for stage in plan.stages if stage.resume.continuations}
    noted = {
        stage: Noted(ids[-1], job_comment(run_id, stage), earlier=tuple(ids[:-1]) if stage in chained else ())
        for stage, ids in (read_json(files.jobs) or {}).items()
        if ids
    }
    for job in read_arrays(files) if sweep else ():
        comment = job_comment(run_id, job.name)
        numbers = {point.task: point.number for point in sweep.points if point.array == job.array} if sweep else {}
        for task in job.tasks:
            task_id, name = f"{job.job_id}_{task}" if job.job_id else "", of_point(job.stage, numbers[task])
            before = noted.get(name)
            earlier = (*before.earlier, before.job_id) if before and job.stage in chained else ()
            noted[name] = Noted(task_id, comment, task, earlier)
    return noted


def _jobs_of_point(above: RunDir, plan: Plan, files: RunDir) -> dict[str, Noted]:
    number = plan.run_id.rpartition("/")[2]
    whole = noted_jobs(replace(plan, run_id=plan.run_id.rpartition("/")[0]), above)
    found = {}
    for name, job in whole.items():
        stage, slash, of = name.partition("/")
        if (of == number) if slash else name != SELECT:
            found[stage] = job
    return found


def stages_of_point(plan: Plan, files: RunDir) -> tuple[Stage, ...]:
    """The stages that a run directory's plan does there: of a point that is not the best one without those after it."""
    above = sweep_above(files.root)
    sweep = read_sweep(above) if above else None
    if above is None or sweep is None or above.best.resolve() == files.root.resolve():
        return plan.stages
    return tuple(stage for stage in plan.stages if stage.name not in sweep.best)


@dataclass(frozen=True)
class Unit:
    """What has a job of its own, in a sweep. `files` is where it works, None before the best point is known."""

    name: str
    stage: Stage
    files: RunDir | None
    after: tuple[str, ...]  # units that it waits for
    point: Point | None = None

    @property
    def script(self) -> str:
        """What its script is called: that of an array, or of its stage."""
        return self.stage.name if self.point is None else array_name(self.stage.name, self.point.array)

    @property
    def done(self) -> bool:
        """Whether it has succeeded."""
        return self.files is not None and self.files.result(self.stage.name).exists()


def units(plan: Plan, sweep: Sweep, files: RunDir) -> Iterator[Unit]:
    """Everything in a sweep that has a job of its own, each after those that it waits for."""
    best = RunDir(files.best) if files.best.exists() else None
    for stage in plan.stages:
        if stage.name not in sweep.each:
            after = [
                of_point(name, point.number)
                for name in stage.depends_on
                if name in sweep.each
                for point in sweep.points
            ]
            after += [name for name in stage.depends_on if name not in sweep.each]
            yield Unit(stage.name, stage, best if stage.name in sweep.best else files, tuple(after))
            continue
        for points in sweep.arrays:
            if not files.script(array_name(stage.name, points[0].array)).exists():
                continue  # not every point need have every stage
            for point in points:
                names = (of_point(name, point.number) if name in sweep.each else name for name in stage.depends_on)
                name = of_point(stage.name, point.number)
                yield Unit(name, stage, point_files(files, point), tuple(names), point)


def resume_sweep(
    plan: Plan,
    files: RunDir,
    scheduler: Scheduler,
    active_jobs: Callable[[], Mapping[str, str]],
    only: Collection[str] | None,
    admit: Callable[[Collection[Unit], int], None],
) -> list[str]:
    """As `submission.resume`, for a sweep; call it with the run's lock.

    `admit` gets what is to be submitted, and how many jobs leave the queue for it, before anything is changed; it
    raises where the scheduler would refuse.
    """
    sweep = read_sweep(files)
    assert sweep is not None
    _find_cut(plan, files, scheduler)
    active = dict(active_jobs())
    pending: dict[str, Unit] = {}
    for unit in units(plan, sweep, files):
        in_vain = any(name in pending for name in unit.after)
        wanted = only is None or unit.name in only or in_vain
        if wanted and not unit.done and (unit.name not in active or in_vain):
            pending[unit.name] = unit
    noted = noted_jobs(plan, files)
    replaced = [name for name in pending if name in active]
    admit(pending.values(), len(replaced))
    every = [job_id for name in replaced for job_id in (*noted[name].earlier, noted[name].job_id, active.pop(name))]
    scheduler.cancel(sorted(set(every) - {""}))
    for unit in pending.values():
        if unit.files is not None:
            forgive(unit.files, unit.stage.name)
    # of several jobs, each after the one before, others have to wait for the last
    active = {name: noted[name].job_id or job_id for name, job_id in active.items()}
    submit_sweep(plan, sweep, files, scheduler, pending=pending, active=active)
    return list(pending)


def forgive(files: RunDir, stage: str) -> None:
    """A person looked at a stage: it is not given up, any node will do, crashes and idle stops count from zero."""
    for name in (files.cancelled, files.given_up, files.excluded, files.not_before):
        name(stage).unlink(missing_ok=True)
    for marker in files.root.glob(f"logs/{stage}/attempt-*/crashed"):
        marker.unlink()
    names = [path.name.removeprefix("attempt-") for path in files.root.glob(f"logs/{stage}/attempt-*")]
    if numbers := [int(name) for name in names if name.isdecimal()]:
        write_text(files.forgiven(stage), str(max(numbers)))


def submit_stage(
    plan: Plan,
    stage: Stage,
    files: RunDir,
    scheduler: Scheduler,
    noted: dict[str, list[str]],
    depends_on: Sequence[str],
) -> str:
    """Submit a stage's job, then those that go on with it, each after the one before; returns the last one's id.

    Before each call there is a note with an empty id: where we are killed, or get no answer, `find_cut` knows that
    there may be a job. The ids are in `noted`, which is written with the next note, or by the caller.
    """
    waits = list(depends_on)
    for _ in range(1 + stage.resume.continuations):
        noted[stage.name].append("")
        write_json(files.jobs, noted)
        with hiding(plan.secrets):  # they reach jobs in secrets.sh alone
            job_id = scheduler.submit(files.script(stage.name), depends_on=waits)
        noted[stage.name][-1] = job_id
        waits = [*depends_on, f"afterany:{job_id}"]
    return job_id


def submit_sweep(
    plan: Plan,
    sweep: Sweep,
    files: RunDir,
    scheduler: Scheduler,
    *,
    pending: Mapping[str, Unit],
    active: Mapping[str, str],
) -> None:
    """Submit the pending units, tasks that wait for the same jobs as one array. `active`: unit -> its job.

    There is a note before and after every call: before, with an empty id.
    """
    noted: dict[str, list[str]] = read_json(files.jobs) or {s.name: [] for s in plan.stages if s.name not in sweep.each}
    arrays = read_arrays(files)
    known = dict(active)
    for stage in plan.stages:
        if stage.name not in sweep.each:
            if unit := pending.get(stage.name):
                kind = "afterany" if stage.name == SELECT else "afterok"
                jobs = dict.fromkeys(known[name].partition("_")[0] for name in unit.after if name in known)
                waits = [f"{kind}:{job_id}" for job_id in jobs]
                known[stage.name] = submit_stage(plan, stage, files, scheduler, noted, waits)
                write_json(files.jobs, noted)
            continue
        batches = _batches(stage, sweep, pending, known)
        submitted: list[str] = []
        for (array, dependencies), at_once in zip(batches, _shares(len(batches), sweep.concurrency), strict=True):
            tasks = batches[array, dependencies]
            job = ArrayJob(stage.name, array, tuple(sorted(tasks)))
            text = f"{task_text(job.tasks)}%{at_once}"
            waits = list(dependencies)
            if len(submitted) >= sweep.concurrency:  # more arrays than points at a time: one after the other
                waits.append(f"afterany:{submitted[-sweep.concurrency]}")
            for _ in range(1 + stage.resume.continuations):
                write_arrays(files, [*arrays, job])
                with hiding(plan.secrets):
                    job_id = scheduler.submit(files.script(job.name), depends_on=waits, array=text)
                arrays.append(replace(job, job_id=job_id))
                waits = [*waits, f"afterany:{job_id}"]
            submitted.append(job_id)
            known |= {of_point(stage.name, number): f"{job_id}_{task}" for task, number in tasks.items()}
        write_arrays(files, arrays)


def _batches(
    stage: Stage, sweep: Sweep, pending: Mapping[str, Unit], known: Mapping[str, str]
) -> dict[tuple[int, tuple[str, ...]], dict[int, int]]:
    """The pending tasks of a stage, by array and by what they wait for: task -> number of its point."""
    batches: dict[tuple[int, tuple[str, ...]], dict[int, int]] = {}
    for point in sweep.points:
        unit = pending.get(of_point(stage.name, point.number))
        if unit is None:
            continue
        # what is neither active nor pending has succeeded: its id may be purged, so it is left out
        waits = tuple(
            f"aftercorr:{known[name].partition('_')[0]}" if "/" in name else f"afterok:{known[name]}"
            for name in unit.after
            if name in known
        )
        batches.setdefault((point.array, waits), {})[point.task] = point.number
    return batches


def _shares(arrays: int, concurrency: int) -> list[int]:
    """How many tasks of each array may run at once, so that all arrays together keep to the limit."""
    share, rest = divmod(concurrency, max(arrays, 1))
    return [max(1, share + (index < rest)) for index in range(arrays)]


def _find_cut(plan: Plan, files: RunDir, scheduler: Scheduler) -> None:
    """Put the jobs of a submission that was cut in the place of its empty id, or take its note away."""
    noted: dict[str, list[str]] = read_json(files.jobs) or {}
    if find_cut(plan.run_id, scheduler, noted):
        write_json(files.jobs, noted)
    arrays = read_arrays(files)
    cut = [job for job in arrays if not job.job_id]
    for job in cut:
        ids = {job.name: [*(other.job_id for other in arrays if other.name == job.name and other.job_id), ""]}
        find_cut(plan.run_id, scheduler, ids)
        known = {other.job_id for other in arrays}
        arrays.remove(job)
        arrays += [replace(job, job_id=job_id) for job_id in ids[job.name] if job_id not in known]
    if cut:
        write_arrays(files, arrays)


def find_cut(run_id: str, scheduler: Scheduler, noted: dict[str, list[str]]) -> bool:
    """Put the jobs of submissions that were cut in the place of their empty ids; whether there was such a submission.

    Call it with the run's lock, which an sbatch that outlives its swiftlaunch still holds.
    """
    cut = {name: ids for name, ids in noted.items() if ids and not ids[-1]}
    for name, ids in cut.items():
        found: list[str] = []
        for look in range(LOOKS):
            if look:
                time.sleep(1)
            found = [job.job_id for job in scheduler.find(job_comment(run_id, name)) if job.job_id not in ids]
            if found:
                break
        ids[-1:] = found
    return bool(cut)


def submitted_any(plan: Plan, files: RunDir, scheduler: Scheduler) -> bool:
    """Whether there is a job of this run, noted or not."""
    _find_cut(plan, files, scheduler)
    return any((read_json(files.jobs) or {}).values()) or bool(read_arrays(files))


def ids_to_cancel(plan: Plan, jobs: Mapping[str, str], files: RunDir) -> list[str]:
    """The ids that cancel these jobs (unit -> id) and those that wait to go on with them.

    In the order of `jobs`. One id for an array of which several tasks are among them: they are of one point, or of all
    that are active.
    """
    every = noted_jobs(plan, files)
    wanted = [
        job_id for name, own in jobs.items() for job_id in (own, *every[name].earlier, every[name].job_id) if job_id
    ]
    found: dict[str, list[str]] = {}
    for job_id in dict.fromkeys(wanted):
        found.setdefault(job_id.partition("_")[0], []).append(job_id)
    return [whole if len(ids) > 1 else ids[0] for whole, ids in found.items()]


def write_points(files: RunDir, sweep: Sweep, plan: Plan, plans: Sequence[Plan]) -> None:
    """The folders of all points; what they share is linked into each. Nothing is flushed one by one: there are many."""
    write_json(files.sweep, sweep.to_json())
    shared = [stage.name for stage in plan.stages if stage.name not in (*sweep.each, *sweep.best, SELECT)]
    for point, own in zip(sweep.points, plans, strict=True):
        folder = point_files(files, point)
        for stage in own.stages:
            if stage.name in shared:
                for part in (folder.stage(stage.name), folder.batch_log(stage.name).parent):
                    part.parent.mkdir(parents=True, exist_ok=True)
                    part.symlink_to(Path("../../../..") / part.relative_to(folder.root))
            else:
                folder.stage(stage.name).mkdir(parents=True)
                folder.batch_log(stage.name).parent.mkdir(parents=True)
        folder.plan.write_text(own.to_json(), encoding="utf-8")
