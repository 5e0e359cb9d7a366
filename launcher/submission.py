"""From what was prepared to jobs: write the run directory, submit; later resume and cancel."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from launcher import assets
from launcher.arrays import (
    LOOKS,
    Unit,
    find_cut,
    forgive,
    ids_to_cancel,
    resume_sweep,
    submit_stage,
    submit_sweep,
    submitted_any,
    units,
    write_points,
)
from launcher.errors import Fault, InputError, SchedulerError, SwiftlaunchError, UserError
from launcher.plan import CALL, Plan, Stage, from_json, job_comment
from launcher.prepare import Prepared, arranged, as_submitted
from launcher.record import read_json, write_json, write_text
from launcher.registry import Registry, RunRow, registry_path
from launcher.replan import Replanned, finish_cut, put_in_place
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler, default_state_dir, open_scheduler
from launcher.scheduler.admission import Admission, look
from launcher.scheduler.base import Job, Machine
from launcher.scheduler.process import handing_on
from launcher.sites import Site, usable_python
from launcher.states import State
from launcher.sweep import Sweep, array_name, point_files, read_sweep
from launcher.units import SECONDS_PER_DAY

# What a job imports: words and records, and work/. Everything else stays on the login node.
_SNAPSHOT = (
    "__init__.py",
    "errors.py",
    "units.py",
    "states.py",
    "plan.py",
    "topology.py",
    "families.py",
    "rundir.py",
    "record.py",
    "failures.py",
    "datafiles.py",
    "rows.py",
    "lengths.py",
    "engines.py",
    "sweep.py",
    "submitit.py",  # only because submitit looks for its executors in jobs too
    "work",
)


def submit(
    prepared: Prepared, *, environ: Mapping[str, str], on_admission: Callable[[Admission], None] | None = None
) -> RunRow:
    """Write the run directory, then submit every stage.

    Slurm is asked first whether it would take them all: raises InputError with everything that it would refuse.
    `on_admission` gets its answer where it would take them.

    Interrupted before the first job, nothing is left; later, what is left is a run that `status` describes and
    `resume` completes. Killed, at whatever point, it leaves a run that `resume` completes or takes away.
    """
    plan = prepared.plan
    values = _secret_values(plan, environ)
    _check_environments(prepared)
    if plan.scheduler == "slurm":
        answer = _admitted(*as_submitted(prepared))
        if on_admission is not None:
            on_admission(answer)
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir(), machine=_machine(prepared.site))
    prepared = _fitted(prepared, scheduler)
    root = Path(plan.run_dir)
    row = RunRow(plan.run_id, plan.name, root, plan.site, plan.scheduler, time.time())
    try:
        with _written(prepared, values, row):
            if prepared.placed is None:
                _submit_stages(plan, scheduler, pending=plan.stages, active={})
            else:
                files = RunDir(root)
                pending = {unit.name: unit for unit in units(plan, prepared.placed, files)}
                submit_sweep(plan, prepared.placed, files, scheduler, pending=pending, active={})
    except BaseException:
        if not _submitted_any(plan, scheduler):
            Registry(registry_path(default_state_dir())).remove(plan.run_id)
            shutil.rmtree(root, ignore_errors=True)
        raise
    return row


def resume(
    run_dir: Path,
    plan: Plan,
    active_jobs: Callable[[], Mapping[str, str]],
    only: Collection[str] | None = None,
    again: Replanned | None = None,
) -> list[str]:
    """Submit the stages that have neither a result nor an active job; returns their names.

    With `only` these and those that wait for them; a stage of one point of a sweep is called "train/7". A job that
    waits for a stage which is submitted again is replaced: it waits for a job that has failed, and Slurm may take
    minutes to end it. `active_jobs` gives stage -> id of the job that may still run. It is asked once no other shell
    can submit into this run, so that two at once do not submit the same stage twice.

    `again` is the run planned anew. It takes the place of the old plan if no stage is active but such as wait in vain,
    and if Slurm would take its stages. Raises UserError or InputError if not, and then nothing has changed.
    """
    files = RunDir(run_dir)
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir())

    def known() -> dict[str, str]:
        active = dict(active_jobs())
        lost = _lost(scheduler, active)
        return {name: job_id for name, job_id in active.items() if name not in lost}

    with _locked(run_dir):
        if finish_cut(files):
            plan = from_json(files.plan.read_text(encoding="utf-8"))
        if files.sweep.exists():
            return resume_sweep(plan, files, scheduler, known, only, partial(_admit_units, plan, files))
        noted: dict[str, list[str]] = read_json(files.jobs) or {}
        if find_cut(plan.run_id, scheduler, noted):
            write_json(files.jobs, noted)
        active = known()
        pending: list[Stage] = []
        for stage in plan.stages:
            waits_in_vain = any(before.name in stage.depends_on for before in pending)
            wanted = only is None or stage.name in only or waits_in_vain
            if wanted and not files.result(stage.name).exists() and (stage.name not in active or waits_in_vain):
                pending.append(stage)
        if again is not None:
            _must_rest(plan, [name for name in active if name not in {stage.name for stage in pending}])
            plan = again.plan
            pending = [plan.stage(stage.name) for stage in pending]
        if plan.scheduler == "slurm" and pending:
            scripts = {
                stage.name: again.scripts[stage.name]
                if again is not None
                else files.script(stage.name).read_text(encoding="utf-8")
                for stage in pending
            }
            _admitted(plan, scripts, replaced=sum(stage.name in active for stage in pending))
        if again is not None and pending:
            put_in_place(files, again)
        replaced = [stage.name for stage in pending if stage.name in active]
        scheduler.cancel([job_id for name in replaced for job_id in _all_jobs(plan, name, active.pop(name), noted)])
        for stage in pending:
            forgive(files, stage.name)
        _submit_stages(plan, scheduler, pending=pending, active=active)
    return [stage.name for stage in pending]


def _must_rest(plan: Plan, running: Sequence[str]) -> None:
    if running:
        raise UserError(
            f"{', '.join(running)} of {plan.run_id} is in the queue or runs; a plan changes between jobs",
            where="--set",
            hint=f"stop it first: swiftlaunch cancel {plan.run_id}",
        )


def cancel(run_dir: Path, plan: Plan, jobs: Mapping[str, str]) -> list[str]:
    """Cancel the given stages' jobs (`{stage: job id}`); their scripts do not ask for another attempt."""
    files = RunDir(run_dir)
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir())
    if sweep := read_sweep(files):
        works_in = {unit.name: unit.files for unit in units(plan, sweep, files)}
        for name in jobs:
            if place := works_in[name]:
                place.cancelled(name.partition("/")[0]).touch()
        ids = ids_to_cancel(plan, jobs, files)
    else:
        for stage in jobs:
            write_text(files.cancelled(stage), "")
        noted: dict[str, list[str]] = read_json(files.jobs) or {}
        every = [each for stage, job_id in jobs.items() for each in _all_jobs(plan, stage, job_id, noted)]
        known = scheduler.jobs(every) if len(every) > len(jobs) else {}
        ids = [job_id for job_id in every if job_id not in known or _active(known[job_id])]
    scheduler.cancel(ids)
    return ids


def _all_jobs(plan: Plan, stage: str, job_id: str, noted: Mapping[str, list[str]]) -> list[str]:
    """The job of a stage, and with it those that wait to go on with it."""
    if not plan.stage(stage).resume.continuations:
        return [job_id]
    return list(dict.fromkeys([*(each for each in noted.get(stage, []) if each), job_id]))


def cancel_without_folder(run: RunRow) -> list[str]:
    """Cancel the jobs of a run whose directory is gone, found by their comments; returns their ids."""
    scheduler = open_scheduler(run.scheduler, state_dir=default_state_dir())
    jobs = scheduler.find_below(job_comment(run.run_id, ""), since=run.submitted - SECONDS_PER_DAY)
    ids = [job.job_id for job in jobs if not job.state.terminal]
    scheduler.cancel(ids)
    return ids


def _admitted(
    plan: Plan, scripts: Mapping[str, str], tasks: Mapping[str, int] | None = None, *, replaced: int = 0
) -> Admission:
    """Slurm's word that it would take these stages. Raises InputError if not, SchedulerError without an answer.

    `replaced`: as many jobs of this run leave the queue for it. `tasks`: how many jobs a stage is.
    """
    answer = look(plan, scripts, replaced=replaced, tasks=tasks)
    if answer.trouble:
        raise SchedulerError(answer.trouble, hint="nothing was submitted; try again later")
    if answer.faults:
        raise InputError(answer.faults)
    return answer


def _admit_units(plan: Plan, files: RunDir, pending: Collection[Unit], replaced: int) -> None:
    """As `_admitted`, for what is to be submitted of a sweep: of each script as many jobs as there are units."""
    if plan.scheduler != "slurm" or not pending:
        return
    stages: dict[str, Stage] = {}
    for unit in pending:
        if unit.script not in stages:  # points of different arrays may ask for different resources
            own = unit.files if unit.point else None
            stage = from_json(own.plan.read_text(encoding="utf-8")).stage(unit.stage.name) if own else unit.stage
            stages[unit.script] = replace(stage, name=unit.script)
    scripts = {name: files.script(name).read_text(encoding="utf-8") for name in stages}
    tasks = Counter(unit.script for unit in pending)
    _admitted(replace(plan, stages=tuple(stages.values())), scripts, tasks, replaced=replaced)


def _submit_stages(plan: Plan, scheduler: Scheduler, *, pending: Sequence[Stage], active: Mapping[str, str]) -> None:
    """Submit in order, each stage after those it depends on; a note before and after every call."""
    files = RunDir(Path(plan.run_dir))
    noted: dict[str, list[str]] = read_json(files.jobs) or {stage.name: [] for stage in plan.stages}
    known = {name: _last_job(plan, name, job_id, noted, scheduler) for name, job_id in active.items()}
    for stage in pending:
        # a stage that is neither active nor pending has succeeded: its id may be purged, so it is left out
        parents = [known[name] for name in stage.depends_on if name in known]
        known[stage.name] = submit_stage(plan, stage, files, scheduler, noted, parents)
    write_json(files.jobs, noted)


def _last_job(plan: Plan, stage: str, job_id: str, noted: Mapping[str, list[str]], scheduler: Scheduler) -> str:
    """The job of a stage that others have to wait for: of several, each after the one before, the last."""
    ids = _all_jobs(plan, stage, job_id, noted)
    if len(ids) == 1:
        return job_id
    known = scheduler.jobs(ids)
    return next((each for each in reversed(ids) if _active(known[each])), job_id)


def _lost(scheduler: Scheduler, active: Mapping[str, str]) -> list[str]:
    """Stages whose jobs the scheduler does not know, however often it is asked: a killed controller lost them."""
    lost = dict(active)
    for number in range(LOOKS):
        if number and lost:
            time.sleep(1)
        jobs = scheduler.jobs(list(lost.values()))
        lost = {name: job_id for name, job_id in lost.items() if jobs[job_id].state is State.UNKNOWN}
    return list(lost)


def _active(job: Job) -> bool:
    return not job.state.terminal and job.state is not State.UNKNOWN


def _submitted_any(plan: Plan, scheduler: Scheduler) -> bool:
    """Whether there is a job of this run, noted or not."""
    try:
        return submitted_any(plan, RunDir(Path(plan.run_dir)), scheduler)
    except SwiftlaunchError:
        return True  # it cannot say: keep the run directory


def forget_unwritten(run: RunRow) -> bool:
    """Take away what a submission left that was killed while it wrote its folder; whether there was anything."""
    part = RunDir(run.run_dir).unwritten
    if run.run_dir.exists() or not part.exists():
        return False
    gone = part.with_suffix(".cut")  # at once: a submission that still writes cannot give it its name then
    part.rename(gone)
    shutil.rmtree(gone)
    Registry(registry_path(default_state_dir())).remove(run.run_id)
    return True


@contextmanager
def _written(prepared: Prepared, secret_values: Mapping[str, str], row: RunRow) -> Iterator[None]:
    """Write the run directory under another name, list the run, give it its own name; within, it is locked."""
    final = Path(prepared.plan.run_dir)
    part = RunDir(final).unwritten
    with ExitStack() as until_submitted:
        try:
            part.mkdir(parents=True)
            Registry(registry_path(default_state_dir())).add(row)
            until_submitted.enter_context(_locked(part))
            _write_run(part, prepared, secret_values)
            part.rename(final)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise UserError(
                f"cannot write the run directory: {error.strerror}", where=str(final), hint="set the site's runs_dir"
            ) from error
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        yield


def _write_run(part: Path, prepared: Prepared, secret_values: Mapping[str, str]) -> None:
    files = RunDir(part)
    write_text(files.plan, prepared.plan.to_json())
    write_text(files.recipe, prepared.recipe_text)
    for name, text in prepared.scripts.items():
        write_text(files.script(name), text, mode=0o755)
        if prepared.placed is None or name not in (*prepared.placed.best, *_array_scripts(prepared.placed)):
            files.stage(name).mkdir(parents=True)
            files.batch_log(name).parent.mkdir(parents=True)  # sbatch fails a job whose output folder is missing
    if prepared.placed is not None:
        write_points(files, prepared.placed, prepared.plan, prepared.point_plans)
    for place, source in prepared.linked:
        shutil.copytree(source, part / place.relative_to(prepared.plan.run_dir), copy_function=_link)
    if prepared.inputs:
        called = [files] if prepared.placed is None else [point_files(files, point) for point in prepared.placed.points]
        for folder, pickled in zip(called, prepared.inputs, strict=True):
            folder.submitted(CALL).write_bytes(pickled)
    if secret_values:
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in secret_values.items()]
        write_text(files.secrets, "".join(lines), mode=0o600)
    _snapshot(files.code / "launcher")


def _link(source: str, target: str) -> None:
    """A second name for a file, so that it outlives the first; a copy where there cannot be one."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _array_scripts(sweep: Sweep) -> list[str]:
    return [array_name(stage, points[0].array) for stage in sweep.each for points in sweep.arrays]


def _fitted(prepared: Prepared, scheduler: Scheduler) -> Prepared:
    """A sweep with arrays as large as this scheduler takes them."""
    if prepared.placed is None:
        return prepared
    largest = scheduler.largest_array()
    if largest < 1:
        raise UserError("this cluster takes no job arrays (MaxArraySize = 0)", hint="submit the points one by one")
    return arranged(prepared, largest)


def _snapshot(target: Path) -> None:
    """Copy what jobs import, so that a later upgrade cannot change a queued job."""
    source = Path(__file__).resolve().parent
    target.mkdir(parents=True)
    for name in _SNAPSHOT:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / name, target / name)


def _secret_values(plan: Plan, environ: Mapping[str, str]) -> dict[str, str]:
    missing = [name for name in plan.secrets if not environ.get(name)]
    if missing:
        raise UserError(
            f"not set in the environment: {', '.join(missing)}",
            where="env.secrets",
            hint="export them in this shell, or remove them from the recipe",
        )
    return {name: environ[name] for name in plan.secrets}


def _check_environments(prepared: Prepared) -> None:
    """Locked environments are built before jobs that need them are submitted: compute nodes have no internet.

    Other virtual environments are looked for where jobs run on this machine; elsewhere only the nodes may see them.
    """
    needed = {
        environment.role: environment
        for stage in prepared.plan.stages
        for environment in (stage.environment, *(group.environment for group in stage.groups))
    }
    missing = [
        role
        for role, environment in needed.items()
        if environment.lock and not usable_python(prepared.site, role, assets.folder("site"))
    ]
    if missing:
        raise UserError(
            f"not built: {', '.join(missing)}",
            where=f"environments of site {prepared.site.name}",
            hint=f"run: swiftlaunch env sync {' '.join(missing)} {prepared.site.option}",
        )
    if prepared.site.scheduler == "local":
        own = {role: environment.python for role, environment in needed.items() if environment.kind == "venv"}
        faults = [
            Fault(
                f"{prepared.site.path}: environments.{role}.python", f"no interpreter at {python}", "correct the path"
            )
            for role, python in own.items()
            if "/" in python and not os.access(python, os.X_OK)
        ]
        if faults:
            raise InputError(faults)


def _machine(site: Site) -> Machine:
    """What the local scheduler may hand out at this site."""
    node = site.node
    return Machine(nodes=node.count or 1, cpus=node.cpus, memory_mib=node.memory_mib, gpus=node.gpus)


@contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """One submission into a run at a time, whatever number of shells try."""
    handle = os.open(run_dir / ".submit.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with handing_on(handle):  # an sbatch whose swiftlaunch is killed may still submit
            yield
    finally:
        os.close(handle)
