"""The same run on other ranks: a plan of what is left of it, with some values of its recipe changed.

What a run computes is fixed when it is submitted. What may change is where and how it is computed: the parallel layout,
how a batch is cut, what is saved, and what jobs ask for.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from launcher import assets
from launcher.errors import Fault, InputError, UserError
from launcher.plan import Plan, Stage
from launcher.prepare import planned
from launcher.recipe import load_resolved
from launcher.record import Recorder, read_json, write_json, write_text
from launcher.render import render
from launcher.rundir import RunDir
from launcher.sites import Site

# Values that leave the mathematics of a run alone, by their TOML path or the start of it.
MAY_CHANGE = (
    "train.layout",
    "train.micro_batch_size",
    "train.activation_recompute",
    "train.checkpoint",
    "train.on_spike",
    "train.spike_factor",
    "resources",
    "resume",
    "env",
    "tracking",
)
_CHANGES = "changes.json"


@dataclass(frozen=True)
class Replanned:
    """The run's new plan, the scripts of its stages, and what has changed: TOML path to old and new value."""

    plan: Plan
    scripts: dict[str, str]
    changes: dict[str, tuple[Any, Any]]


def replan(
    plan: Plan, overrides: Sequence[str], *, done: Collection[str], site: Site, home: Path, environ: Mapping[str, str]
) -> Replanned:
    """Plan the run again with `--set` words; stages that are `done` stay as they were. Touches nothing.

    Raises InputError with everything that is wrong with the words, or with the plan that they make.
    """
    if not plan.recipe.get("train"):
        raise UserError(f"{plan.run_id} trains nothing, so it has no layout to change", where="--set")
    if plan.recipe.get("sweep"):
        raise UserError(
            f"{plan.run_id} is a sweep: its points were planned together",
            where="--set",
            hint="submit the recipe again with these values",
        )
    if (site.scheduler, site.name) != (plan.scheduler, plan.site):
        raise UserError(f"{plan.run_id} is on site {plan.site}, not {site.name}", where="--site")
    called = Path(plan.recipe_path or plan.name)
    before = load_resolved(plan.recipe, called).resolved
    loaded = load_resolved(plan.recipe, called, overrides)
    changes = dict(_changes(before, loaded.resolved))
    if fixed := [path for path in changes if not _may_change(path)]:
        raise InputError(
            [
                Fault(
                    f"--set {path}",
                    "a run that has begun cannot change it: it would be another run",
                    "submit the recipe again with this value",
                )
                for path in fixed
            ]
        )
    new = planned(loaded, site, plan.run_id, home=home, environ=environ)
    _must_fit(plan, new)
    old = {stage.name: stage for stage in plan.stages}
    stages = tuple(old[stage.name] if stage.name in done else _same_software(stage, old) for stage in new.stages)
    new = replace(
        new,
        run_dir=plan.run_dir,
        recipe_path=plan.recipe_path,
        git_sha=plan.git_sha,
        version=plan.version,
        stages=stages,
    )
    return Replanned(new, render(new, assets.folder("templates")), changes)


def put_in_place(files: RunDir, again: Replanned) -> None:
    """Replace plan and scripts; the old plan is kept beside. Cut at any point, `finish_cut` completes or forgets it."""
    part = files.replanned.with_name(f".{files.replanned.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    numbers = (number for number in count(1) if not files.earlier_plan(number).exists())
    write_text(part / files.plan.name, again.plan.to_json())
    for name, text in again.scripts.items():
        write_text(part / files.script(name).name, text, mode=0o755)
    write_json(part / _CHANGES, {"earlier": next(numbers), "changes": again.changes})
    part.rename(files.replanned)
    finish_cut(files)


def finish_cut(files: RunDir) -> bool:
    """Move a new plan and its scripts to their places, where they lie ready; whether they did."""
    folder = files.replanned
    if not folder.is_dir():
        return False
    facts = read_json(folder / _CHANGES)
    earlier = files.earlier_plan(facts["earlier"])
    if not earlier.exists():
        write_text(earlier, files.plan.read_text(encoding="utf-8"))
    for script in sorted(folder.glob("*.sh")):
        script.replace(files.script(script.stem))
    if (folder / files.plan.name).exists():
        (folder / files.plan.name).replace(files.plan)
    recorder = Recorder(files.event_file("train", 0, 0), stage="train", attempt=0, rank=0)
    recorder.event("replanned", time.time(), earlier=earlier.name, changes=facts["changes"])
    shutil.rmtree(folder)
    return True


def _may_change(path: str) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in MAY_CHANGE)


def _changes(before: Any, after: Any, at: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The TOML paths whose values differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            yield from _changes(before.get(key), after.get(key), f"{at}.{key}".lstrip("."))
    elif before != after:
        yield at, (before, after)


def _must_fit(plan: Plan, new: Plan) -> None:
    """Raises InputError where model or data are not those that the run began with, or its checkpoints cannot follow."""
    faults = []
    if plan.model["path"] != new.model["path"]:
        faults.append(Fault("model", f"was at {plan.model['path']}, is at {new.model['path']}", "put it back"))
    if plan.data_hash != new.data_hash:
        faults.append(Fault("data", "the files are not those that the run began with", "put them back"))
    if [stage.name for stage in plan.stages] != [stage.name for stage in new.stages]:
        faults.append(Fault("", "this release plans other stages than the run has", "submit the recipe again"))
    elif plan.recipe["train"]["engine"] == "deepspeed":
        ranks, wanted = (each.stage("train").resources.world_size for each in (plan, new))
        if ranks != wanted:
            what = f"DeepSpeed's checkpoints go on with the {ranks} ranks that wrote them, not with {wanted}"
            faults.append(Fault("resources.train", what, f"keep {ranks} ranks; fsdp and megatron can change them"))
    if faults:
        raise InputError(faults)


def _same_software(stage: Stage, old: Mapping[str, Stage]) -> Stage:
    """The stage with the environment that it began in: a site's may have been built anew since."""
    environment = replace(old[stage.name].environment, variables=stage.environment.variables)
    return replace(stage, environment=environment)
