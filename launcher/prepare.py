"""From a recipe or an earlier run to what would be submitted: check, plan, render. Nothing is written or started."""

from __future__ import annotations

import difflib
import getpass
import secrets as random_tokens
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import __version__, assets
from launcher.dataset import check_files, hash_parameters
from launcher.errors import Fault, InputError, UserError
from launcher.models import find_model
from launcher.plan import Plan
from launcher.planner import Identity, make_plan
from launcher.recipe import LoadedRecipe, load_recipe
from launcher.render import render
from launcher.rundir import RunDir
from launcher.scheduler.process import run as run_process
from launcher.sites import Site, choose_site, lock_hashes


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
