"""From a recipe to jobs. Prepare (check and plan), render and submit are one way, cut where the user asks."""

from __future__ import annotations

import difflib
import fcntl
import getpass
import os
import secrets as random_tokens
import shlex
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import __version__, assets
from launcher.dataset import check_files, hash_parameters
from launcher.errors import Fault, InputError, SwiftlaunchError, UserError
from launcher.models import find_model
from launcher.plan import Plan, Stage, job_comment
from launcher.planner import Identity, make_plan
from launcher.recipe import LoadedRecipe, load_recipe
from launcher.record import read_json, write_json, write_text
from launcher.registry import Registry, RunRow, registry_path
from launcher.render import render
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler, default_state_dir, open_scheduler
from launcher.scheduler.base import Machine
from launcher.scheduler.process import run as run_process
from launcher.sites import Site, choose_site, lock_hashes, usable_python

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
    "rows.py",
    "engines.py",
    "work",
)

# Every name that a stage can have.
_STAGES = ("baseline", "train", "export", "evaluate", "quantize", "evaluate-quantized", "serve")


@dataclass(frozen=True)
class Prepared:
    """What would be submitted, whole: nothing has been written or started yet."""

    plan: Plan
    scripts: dict[str, str]
    recipe_text: str
    site: Site
    why_site: str


def prepare(
    recipe_path: Path,
    *,
    overrides: Sequence[str] = (),
    site_name: str = "",
    home: Path,
    environ: Mapping[str, str],
    run_id: str = "",
) -> Prepared:
    """Check everything that can be checked here, then plan and render.

    `recipe_path` is a file or the name of a shipped recipe. Raises InputError with every fault found; touches nothing.
    """
    loaded = load_recipe(recipe_file(recipe_path), overrides)
    choice = choose_site(
        site_name, environ=environ, hostname=socket.gethostname(), home=home, shipped=assets.folder("site")
    )
    site = choice.site
    recipe = loaded.recipe
    hf_home = Path(environ.get("HF_HOME") or home / ".cache" / "huggingface")
    files, data_hash, data_faults = _data(loaded)
    try:
        model = find_model(
            recipe.model.name or recipe.model.path or "",
            Path(site.models_dir),
            hf_home,
            revision=recipe.model.revision,
        )
    except InputError as error:
        with _at_lines(loaded):
            raise InputError([*error.faults, *data_faults]) from error
    resolved = loaded.resolved
    if files:
        resolved = {**resolved, "data": {**resolved["data"], **files}}
    with _at_lines(loaded):
        plan = make_plan(
            recipe,
            resolved=resolved,
            site=site,
            model=model,
            data_hash=data_hash,
            data_faults=data_faults,
            identity=Identity(
                run_id=run_id or new_run_id(recipe.name),
                user=getpass.getuser(),
                git_sha=_git_sha(loaded.path.parent),
                recipe_path=str(loaded.path.absolute()),
                version=__version__,
            ),
            lock_hashes=lock_hashes(site, assets.folder("site")),
        )
    return Prepared(plan, render(plan, assets.folder("templates")), loaded.text, site, choice.why)


def recipe_file(given: Path) -> Path:
    """The file as given, or the shipped recipe of that name. Raises UserError for an unknown name."""
    shipped = {path.stem: path for path in assets.folder("recipes").glob("*.toml")}
    if given.exists() or len(given.parts) != 1 or given.suffix:
        return given
    if given.name in shipped:
        return shipped[given.name]
    close = difflib.get_close_matches(given.name, shipped, n=1)
    raise UserError(
        f"there is no file and no shipped recipe {given.name!r}",
        hint=f"did you mean {close[0]}?" if close else "shipped are " + ", ".join(sorted(shipped)),
    )


@contextmanager
def _at_lines(loaded: LoadedRecipe) -> Iterator[None]:
    """Give faults that name a key of the recipe the line where it stands."""
    try:
        yield
    except InputError as error:
        keys = [fault.where.split(".") for fault in error.faults]
        located = [
            # with a colon it is a place in a file already
            fault._replace(where=loaded.where(*key)) if key[0] in loaded.resolved and ":" not in fault.where else fault
            for fault, key in zip(error.faults, keys, strict=True)
        ]
        raise InputError(located) from error


def new_run_id(name: str) -> str:
    """A name for a new run: readable, sortable by time within a recipe, unique."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{random_tokens.token_hex(2)}"


def submit(prepared: Prepared, *, environ: Mapping[str, str]) -> RunRow:
    """Write the run directory, then submit every stage.

    Interrupted before the first job, nothing is left; later, what is left is a run that `status` describes and
    `resume` completes.
    """
    plan = prepared.plan
    values = _secret_values(plan, environ)
    _check_environments(prepared)
    scheduler = open_scheduler(plan.scheduler, state_dir=default_state_dir(), machine=_machine(prepared.site))
    root = Path(plan.run_dir)
    row = RunRow(plan.run_id, plan.name, root, plan.site, plan.scheduler, time.time())
    _write_run(prepared, values)
    try:
        Registry(registry_path(default_state_dir())).add(row)
        with _locked(root):
            _submit_stages(plan, scheduler, pending=plan.stages, active={})
    except BaseException:
        if not any((read_json(RunDir(root).jobs) or {}).values()) and not _found_any(plan, scheduler):
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
        active = dict(active_jobs())
        pending: list[Stage] = []
        for stage in plan.stages:
            waits_in_vain = any(before.name in stage.depends_on for before in pending)
            if not files.result(stage.name).exists() and (stage.name not in active or waits_in_vain):
                pending.append(stage)
        scheduler.cancel([active.pop(stage.name) for stage in pending if stage.name in active])
        for stage in pending:
            files.cancelled(stage.name).unlink(missing_ok=True)
            for marker in files.root.glob(f"logs/{stage.name}/attempt-*/crashed"):
                marker.unlink()  # a person looked at it: crashes count from zero again
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


def serve_again(prepared_from: Plan, site: Site, minutes: int, run_id: str = "") -> Prepared:
    """A new run of one stage: serve what an earlier run made, for `minutes`."""
    stage = next((stage for stage in prepared_from.stages if stage.worker == "serve"), None)
    if stage is None:
        raise UserError(f"run {prepared_from.run_id} has no serve stage", hint="add [serve] to its recipe")
    options = dict(stage.options)
    if source := options["model"].get("artifact_of"):
        path = RunDir(Path(prepared_from.run_dir)).artifact(source)
        if not path.is_dir():
            raise UserError(f"{path} does not exist", hint=f"stage {source} has not succeeded")
        options["model"] = {"name": options["model"]["name"], "path": str(path)}
    options["serve"] = {**options["serve"], "keep_alive_minutes": minutes}
    need = replace(stage.resources, time_limit_minutes=max(stage.resources.time_limit_minutes, minutes + 15))
    name = f"{prepared_from.name}-serve"
    new_id = run_id or new_run_id(name)
    plan = replace(
        prepared_from,
        run_id=new_id,
        name=name,
        run_dir=str(Path(prepared_from.run_dir).parent / new_id),
        stages=(replace(stage, depends_on=(), options=options, resources=need),),
    )
    text = RunDir(Path(prepared_from.run_dir)).recipe.read_text(encoding="utf-8")
    return Prepared(plan, render(plan, assets.folder("templates")), text, site, f"the site of {prepared_from.run_id}")


def _submit_stages(plan: Plan, scheduler: Scheduler, *, pending: Sequence[Stage], active: Mapping[str, str]) -> None:
    """Submit in order, each stage after those it depends on; a note before and after every call."""
    files = RunDir(Path(plan.run_dir))
    noted: dict[str, list[str]] = read_json(files.jobs) or {stage.name: [] for stage in plan.stages}
    write_json(files.jobs, noted)
    known = dict(active)
    for stage in pending:
        # a stage that is neither active nor pending has succeeded: its id may be purged, so it is left out
        depends_on = [known[name] for name in stage.depends_on if name in known]
        known[stage.name] = scheduler.submit(files.script(stage.name), depends_on=depends_on)
        noted[stage.name].append(known[stage.name])
        write_json(files.jobs, noted)


def _found_any(plan: Plan, scheduler: Scheduler) -> bool:
    """Whether the scheduler holds a job of this run that was not noted down."""
    try:
        return any(scheduler.find(job_comment(plan.run_id, stage.name)) for stage in plan.stages)
    except SwiftlaunchError:
        return True  # it cannot say: keep the run directory


def _write_run(prepared: Prepared, secret_values: Mapping[str, str]) -> None:
    """Write the run directory under another name, then give it its own."""
    final = Path(prepared.plan.run_dir)
    part = final.with_name(f".{final.name}.part")
    files = RunDir(part)
    try:
        part.mkdir(parents=True)
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
        part.rename(final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"cannot write the run directory: {error.strerror}", where=str(final), hint="set the site's runs_dir"
        ) from error
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


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


def _data(loaded: LoadedRecipe) -> tuple[dict[str, list[str]], str, list[Fault]]:
    """The files that globs stand for, by split; the data's hash; what is wrong with the files."""
    data = loaded.recipe.data
    if data is None:
        return {}, "", []
    if data.source != "files":
        return {}, hash_parameters(loaded.resolved["data"]), []
    files, faults = loaded.data_splits()
    columns = data.columns.model_dump(exclude_none=True) if data.columns else None
    reports = [check_files(paths, data.format, columns) for paths in files.values() if paths]
    faults = [*faults, *(fault for report in reports for fault in report.faults)]
    names = {split: [str(path) for path in paths] for split, paths in files.items()}
    return names, hash_parameters({"files": [report.sha256 for report in reports]}), faults


def _git_sha(folder: Path) -> str:
    """The commit of the recipe's repository, "" where there is none or no git."""
    if not shutil.which("git"):
        return ""
    finished = run_process(["git", "-C", str(folder), "rev-parse", "HEAD"], timeout=10)
    return finished.stdout.strip() if finished.returncode == 0 else ""


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
        yield
    finally:
        os.close(handle)
