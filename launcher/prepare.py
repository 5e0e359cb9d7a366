"""From a recipe or an earlier run to what would be submitted: check, plan, render. Nothing is written or started."""

from __future__ import annotations

import difflib
import getpass
import json
import secrets as random_tokens
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from launcher import __version__, assets
from launcher.dataset import check_files, hash_parameters
from launcher.errors import Fault, InputError, UserError
from launcher.models import FoundModel, find_model
from launcher.plan import Plan
from launcher.planner import Identity, SweepPlan, make_plan, plan_sweep
from launcher.recipe import LoadedRecipe, Model, describe, load_recipe
from launcher.render import Place, render
from launcher.rundir import RunDir
from launcher.scheduler.process import run as run_process
from launcher.sites import Site, choose_site, lacks, lock_hashes
from launcher.sweep import Sweep, array_name, sweep_above
from launcher.units import counted

MOST_FAULTS = 20  # of a sweep's points; the first ones are enough to go on with
ARRAY_SIZE = 1001  # tasks of an array where Slurm's MaxArraySize is the default; `submit` asks for the real one


@dataclass(frozen=True)
class Prepared:
    """What would be submitted, whole: nothing has been written or started yet."""

    plan: Plan
    scripts: dict[str, str]
    recipe_text: str
    site: Site
    why_site: str
    sweep: SweepPlan | None = None  # of a sweep; with it where its points are, and their plans
    placed: Sweep | None = None
    point_plans: tuple[Plan, ...] = ()
    linked: tuple[tuple[Path, Path], ...] = ()  # folders of the run, and the ones whose files they have links to
    inputs: tuple[bytes, ...] = ()  # of calls: the pickled functions, of an array in the order of its points


def prepare(
    recipe_path: Path,
    *,
    overrides: Sequence[str] = (),
    site_name: str = "",
    home: Path,
    environ: Mapping[str, str],
    run_id: str = "",
    recipe_text: str = "",
) -> Prepared:
    """Check everything that can be checked here, then plan and render.

    `recipe_path` is a file or the name of a shipped recipe. With `recipe_text` there is no file: the path is what
    messages call that recipe, and where its relative paths start. Raises InputError with every fault found; touches
    nothing.
    """
    loaded = load_recipe(recipe_path if recipe_text else recipe_file(recipe_path), overrides, recipe_text)
    choice = choose_site(
        site_name, environ=environ, hostname=socket.gethostname(), home=home, shipped=assets.folder("site")
    )
    planner = _Planner(loaded, choice.site, home, environ, "" if recipe_text else str(loaded.path.absolute()))
    run_id = run_id or new_run_id(loaded.recipe.name)
    if loaded.recipe.sweep is not None:
        sweep = swept(loaded, planner.plan, run_id, choice.site)
        return arranged(Prepared(sweep.plan, {}, loaded.text, choice.site, choice.why, sweep), ARRAY_SIZE)
    plan = planner.plan(loaded, run_id)
    return Prepared(plan, render(plan, assets.folder("templates")), loaded.text, choice.site, choice.why)


def planned(
    loaded: LoadedRecipe, site: Site, run_id: str, *, home: Path, environ: Mapping[str, str], recipe_path: str = ""
) -> Plan:
    """The plan of a recipe without a sweep. Raises InputError with every fault found."""
    return _Planner(loaded, site, home, environ, recipe_path).plan(loaded, run_id)


class _Planner:
    """Plans recipes that are points of one, on one site: what they share is looked up once."""

    def __init__(
        self, loaded: LoadedRecipe, site: Site, home: Path, environ: Mapping[str, str], recipe_path: str
    ) -> None:
        self._site = site
        self._hf_home = Path(environ.get("HF_HOME") or home / ".cache" / "huggingface")
        self._lock_hashes = lock_hashes(site, assets.folder("site"))
        self._identity = Identity(
            run_id="",
            user=getpass.getuser(),
            git_sha=git_sha(loaded.path.parent),
            recipe_path=recipe_path,
            version=__version__,
        )
        self._models: dict[Model, FoundModel | InputError] = {}
        self._data: dict[str, _Data] = {}

    def plan(self, loaded: LoadedRecipe, run_id: str) -> Plan:
        """The plan of a recipe without a sweep. Raises InputError with every fault found."""
        key = json.dumps(loaded.resolved["data"], sort_keys=True)
        if key not in self._data:
            self._data[key] = _data(loaded)
        found = self._data[key]
        data_faults = found.faults
        resolved = loaded.resolved
        if found.files:
            resolved = {**resolved, "data": {**resolved["data"], **found.files}}
        with _at_lines(loaded):
            model = self._model(loaded.recipe.model)
            if isinstance(model, InputError):
                raise InputError([*model.faults, *data_faults])
            if found.chats and not model.writes_chats:
                data_faults = [*data_faults, _NO_TEMPLATE]
            plan = make_plan(
                loaded.recipe,
                resolved=resolved,
                site=self._site,
                model=model,
                data_hash=found.hash,
                data_faults=data_faults,
                identity=replace(self._identity, run_id=run_id),
                lock_hashes=self._lock_hashes,
            )
            if faults := _tracking_faults(plan, self._site):
                raise InputError(faults)
            return plan

    def _model(self, model: Model) -> FoundModel | InputError:
        if model not in self._models:
            try:
                found = find_model(
                    model.name or model.path or "", Path(self._site.models_dir), self._hf_home, revision=model.revision
                )
                self._models[model] = replace(found, chat_template=_template(model.chat_template))
            except InputError as error:
                self._models[model] = error
        return self._models[model]


def _tracking_faults(plan: Plan, site: Site) -> list[Fault]:
    """Trackers that the environment of the training is known to lack; of others the job says it when it starts."""
    faults: list[Fault] = []
    for stage in plan.stages:
        tracking, role = stage.options.get("tracking") or {}, stage.environment.role
        for name in ("wandb", "mlflow"):
            if tracking.get(name) and lacks(site, role, assets.folder("site"), name):
                message = f"the {role} environment of site {site.name} has no {name}"
                faults.append(Fault(f"tracking.{name}", message, f"install it there, or write {name} = false"))
    return faults


def swept(loaded: LoadedRecipe, plan: Callable[[LoadedRecipe, str], Plan], run_id: str, site: Site) -> SweepPlan:
    """The plans of a sweep; `plan` makes that of one point, given its recipe and its run id.

    Raises InputError with the faults of all points, each fault once.
    """
    plans: list[Plan] = []
    faults: dict[Fault, list[LoadedRecipe]] = {}
    for number, point in enumerate(loaded.points):
        try:
            plans.append(plan(point, f"{run_id}/{number}"))
        except InputError as error:
            for fault in error.faults:
                faults.setdefault(fault, []).append(point)
    if faults:
        told = [_of_points(fault, found, len(loaded.points)) for fault, found in faults.items()]
        more = len(told) - MOST_FAULTS
        raise InputError([*told[:MOST_FAULTS], *([Fault("sweep", f"and {more} more faults")] if more > 0 else [])])
    warnings = []
    if loaded.equal_points:
        warnings.append(f"sweep: {counted(loaded.equal_points, 'point')} left out, equal to another one")
    with _at_lines(loaded):
        return plan_sweep(
            loaded.recipe,
            plans,
            [point.values for point in loaded.points],
            run_id=run_id,
            run_dir=str(Path(site.runs_dir) / run_id),
            resolved=loaded.resolved,
            site=site,
            warnings=warnings,
        )


def _of_points(fault: Fault, found: Sequence[LoadedRecipe], total: int) -> Fault:
    """A fault that not all points have says which ones."""
    if len(found) == total:
        return fault
    first = describe(found[0].values)
    more = f" and {counted(len(found) - 1, 'more point')}" if len(found) > 1 else ""
    return fault._replace(message=f"{fault.message} (with {first}{more})")


def arranged(prepared: Prepared, array_size: int) -> Prepared:
    """A sweep with arrays of at most so many points: their folders, and the scripts of all stages."""
    sweep = prepared.sweep
    if sweep is None:
        return prepared
    placed, plans = sweep.placed(array_size)
    return replace(prepared, placed=placed, point_plans=plans, scripts=sweep_scripts(sweep, placed, plans))


def sweep_scripts(sweep: SweepPlan, placed: Sweep, plans: Sequence[Plan]) -> dict[str, str]:
    """All scripts of a sweep by name: of stages that run once, and of each array's stages."""
    whole, templates = sweep.plan, assets.folder("templates")
    home = RunDir(Path(whole.run_dir))
    apart = {*placed.each, *placed.best}
    scripts = render(replace(whole, stages=tuple(s for s in whole.stages if s.name not in apart)), templates)
    best = tuple(stage for stage in whole.stages if stage.name in placed.best)
    scripts |= render(replace(whole, run_dir=str(home.best), stages=best), templates, Place(whole.run_dir))
    for points in placed.arrays:
        array, plan = points[0].array, plans[points[0].number]
        stages = tuple(stage for stage in plan.stages if stage.name in placed.each)
        plan = replace(plan, run_id=whole.run_id, run_dir=str(home.points(array)), stages=stages)
        rendered = render(plan, templates, Place(whole.run_dir, array))
        scripts |= {array_name(stage, array): text for stage, text in rendered.items()}
    return scripts


def as_submitted(prepared: Prepared) -> tuple[Plan, Mapping[str, str], dict[str, int]]:
    """The plan with a stage for each script, the scripts, and how many jobs a stage is: in a sweep those are arrays."""
    plan, sweep = prepared.plan, prepared.placed
    if sweep is None:
        return plan, prepared.scripts, {}
    stages = [stage for stage in plan.stages if stage.name not in sweep.each]
    tasks = {}
    for points in sweep.arrays:
        number, array = points[0].number, points[0].array
        for stage in prepared.point_plans[number].stages:
            if stage.name in sweep.each:
                before = tuple(array_name(name, array) if name in sweep.each else name for name in stage.depends_on)
                stages.append(replace(stage, name=array_name(stage.name, array), depends_on=before))
                tasks[stages[-1].name] = len(points)
    return replace(plan, stages=tuple(stages)), prepared.scripts, tasks


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
    folder = Path(prepared_from.run_dir)
    home = sweep_above(folder) or RunDir(folder)
    plan = replace(
        prepared_from,
        run_id=new_id,
        name=name,
        run_dir=str(home.root.parent / new_id),
        stages=(replace(stage, depends_on=(), options=options, resources=need),),
    )
    text = home.recipe.read_text(encoding="utf-8")
    return Prepared(plan, render(plan, assets.folder("templates")), text, site, f"the site of {prepared_from.run_id}")


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


class _Data(NamedTuple):
    """The files that globs stand for, by split; the data's hash; what is wrong with the files; and whether a chat
    template has to write the rows."""

    files: dict[str, list[str]]
    hash: str
    faults: list[Fault]
    chats: bool


_NO_TEMPLATE = Fault(
    "model",
    "its tokenizer has no chat template, so there is no telling how it marks the turns of a conversation",
    'take the instruct model, give a template (model.chat_template = "FILE"), or train on rows of text',
)


def _data(loaded: LoadedRecipe) -> _Data:
    data = loaded.recipe.data
    if data is None:
        return _Data({}, "", [], chats=False)
    if data.source != "files":
        return _Data({}, hash_parameters(loaded.resolved["data"]), [], chats=True)
    files, faults = loaded.data_splits()
    columns = data.columns.model_dump(exclude_none=True) if data.columns else None
    reports = [check_files(paths, data.format, columns) for paths in files.values() if paths]
    faults = [*faults, *(fault for report in reports for fault in report.faults)]
    names = {split: [str(path) for path in paths] for split, paths in files.items()}
    chats = any(report.format not in ("text", "") for report in reports)
    return _Data(names, hash_parameters({"files": [report.sha256 for report in reports]}), faults, chats)


def _template(file: str | None) -> str:
    """The chat template in a file, "" without one. Raises InputError where it cannot be read or is empty."""
    if file is None:
        return ""
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError([Fault("model.chat_template", f"{file} cannot be read: {reason}")]) from None
    if not text.strip():
        raise InputError([Fault("model.chat_template", f"{file} is empty")])
    return text


def git_sha(folder: Path) -> str:
    """The commit of the recipe's repository, "" where there is none or no git."""
    if not shutil.which("git"):
        return ""
    finished = run_process(["git", "-C", str(folder), "rev-parse", "HEAD"], timeout=10)
    return finished.stdout.strip() if finished.returncode == 0 else ""
