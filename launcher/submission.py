"""From what was prepared to jobs: write the run directory, submit; later resume and cancel."""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from launcher import assets
from launcher.errors import Fault, InputError, SwiftlaunchError, UserError
from launcher.plan import Plan, Stage, job_comment
from launcher.prepare import Prepared
from launcher.record import read_json, write_json, write_text
from launcher.registry import Registry, RunRow, registry_path
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler, default_state_dir, open_scheduler
from launcher.scheduler.base import Machine
from launcher.scheduler.process import handing_on, hiding
from launcher.sites import Site, usable_python

# What a job imports: words and records, and work/. Everything else stays on the login node.
_SNAPSHOT = (
    "__init__.py",
    "errors.py",
    "units.py",
    "states.py",
    "plan.py",
    "topology.py",
    "rundir.py",
    "record.py",
    "failures.py",
    "rows.py",
    "engines.py",
    "work",
)

# Every name that a stage can have.
_STAGES = ("baseline", "train", "export", "evaluate", "quantize", "evaluate-quantized", "serve")

# How often, a second apart, a job is looked for whose submission was cut: a controller that hung may still make it.
_LOOKS = 3


def submit(prepared: Prepared, *, environ: Mapping[str, str]) -> RunRow:
    """Write the run directory, then submit every stage.

    Interrupted before the first job, nothing is left; later, what is left is a run that `status` describes and
    `resume` completes. Killed, at whatever point, it leaves a run that `resume` completes or takes away.
    """
    plan = prepared.plan
    values = _secret_values(plan, environ)
    _check_environments(prepared)
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir(), machine=_machine(prepared.site))
    root = Path(plan.run_dir)
    row = RunRow(plan.run_id, plan.name, root, plan.site, plan.scheduler, time.time())
    try:
        with _written(prepared, values, row):
            _submit_stages(plan, scheduler, pending=plan.stages, active={})
    except BaseException:
        if not _submitted_any(plan, scheduler):
            Registry(registry_path(default_state_dir())).remove(plan.run_id)
            shutil.rmtree(root, ignore_errors=True)
        raise
    return row


def resume(run_dir: Path, plan: Plan, active_jobs: Callable[[], Mapping[str, str]]) -> list[str]:
    """Submit the stages that have neither a result nor an active job; returns their names.

    A job that waits for a stage which is submitted again is replaced: it waits for a job that has failed, and Slurm
    may take minutes to end it. `active_jobs` gives stage -> id of the job that may still run. It is asked once no
    other shell can submit into this run, so that two at once do not submit the same stage twice.
    """
    files = RunDir(run_dir)
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir())
    with _locked(run_dir):
        noted: dict[str, list[str]] = read_json(files.jobs) or {}
        if _find_cut(plan, scheduler, noted):
            write_json(files.jobs, noted)
        active = dict(active_jobs())
        pending: list[Stage] = []
        for stage in plan.stages:
            waits_in_vain = any(before.name in stage.depends_on for before in pending)
            if not files.result(stage.name).exists() and (stage.name not in active or waits_in_vain):
                pending.append(stage)
        scheduler.cancel([active.pop(stage.name) for stage in pending if stage.name in active])
        for stage in pending:
            # a person looked at it: it is not given up, any node will do, crashes count from zero again
            for name in (files.cancelled, files.given_up, files.excluded, files.not_before):
                name(stage.name).unlink(missing_ok=True)
            for marker in files.root.glob(f"logs/{stage.name}/attempt-*/crashed"):
                marker.unlink()
        _submit_stages(plan, scheduler, pending=pending, active=active)
    return [stage.name for stage in pending]


def cancel(run_dir: Path, plan: Plan, jobs: Mapping[str, str]) -> list[str]:
    """Cancel the given stages' jobs (`{stage: job id}`); their scripts do not ask for another attempt."""
    files = RunDir(run_dir)
    for stage in jobs:
        write_text(files.cancelled(stage), "")
    open_scheduler(plan.scheduler, state_dir=default_state_dir()).cancel(list(jobs.values()))
    return list(jobs.values())


def cancel_without_folder(run: RunRow) -> list[str]:
    """Cancel the jobs of a run whose directory is gone, found by their comments; returns their ids."""
    scheduler = open_scheduler(run.scheduler, state_dir=default_state_dir())
    jobs = [job for stage in _STAGES for job in scheduler.find(job_comment(run.run_id, stage))]
    ids = [job.job_id for job in jobs if not job.state.terminal]
    scheduler.cancel(ids)
    return ids


def _submit_stages(plan: Plan, scheduler: Scheduler, *, pending: Sequence[Stage], active: Mapping[str, str]) -> None:
    """Submit in order, each stage after those it depends on; a note before and after every call.

    Before, the note is an empty id: where we are killed, or get no answer, `_find_cut` knows that there may be a job.
    """
    files = RunDir(Path(plan.run_dir))
    noted: dict[str, list[str]] = read_json(files.jobs) or {stage.name: [] for stage in plan.stages}
    known = dict(active)
    for stage in pending:
        # a stage that is neither active nor pending has succeeded: its id may be purged, so it is left out
        depends_on = [known[name] for name in stage.depends_on if name in known]
        noted[stage.name].append("")
        write_json(files.jobs, noted)
        with hiding(plan.secrets):  # they reach jobs in secrets.sh alone
            job_id = scheduler.submit(files.script(stage.name), depends_on=depends_on)
        known[stage.name] = noted[stage.name][-1] = job_id
    write_json(files.jobs, noted)


def _find_cut(plan: Plan, scheduler: Scheduler, noted: dict[str, list[str]]) -> bool:
    """Put the jobs of submissions that were cut in the place of their empty ids; whether there was such a submission.

    Call it with the run's lock, which an sbatch that outlives its swiftlaunch still holds.
    """
    cut = {stage: ids for stage, ids in noted.items() if ids and not ids[-1]}
    for stage, ids in cut.items():
        found: list[str] = []
        for look in range(_LOOKS):
            if look:
                time.sleep(1)
            found = [job.job_id for job in scheduler.find(job_comment(plan.run_id, stage)) if job.job_id not in ids]
            if found:
                break
        ids[-1:] = found
    return bool(cut)


def _submitted_any(plan: Plan, scheduler: Scheduler) -> bool:
    """Whether there is a job of this run, noted or not."""
    noted: dict[str, list[str]] = read_json(RunDir(Path(plan.run_dir)).jobs) or {}
    try:
        _find_cut(plan, scheduler, noted)
    except SwiftlaunchError:
        return True  # it cannot say: keep the run directory
    return any(noted.values())


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
        files.stage(name).mkdir(parents=True)
        files.batch_log(name).parent.mkdir(parents=True)  # sbatch fails a job whose output folder is missing
    if secret_values:
        lines = [f"{name}={shlex.quote(value)}\n" for name, value in secret_values.items()]
        write_text(files.secrets, "".join(lines), mode=0o600)
    _snapshot(files.code / "launcher")


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
    needed = {stage.environment.role: stage.environment for stage in prepared.plan.stages}
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
