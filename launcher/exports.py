"""Any kept checkpoint of a run as a Hugging Face folder: a run of its own, with one stage."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path

from launcher import assets
from launcher.errors import UserError
from launcher.memory import extract_mib
from launcher.models import ModelFacts
from launcher.plan import Estimate, Plan
from launcher.prepare import Prepared, new_run_id
from launcher.record import read_json
from launcher.render import render
from launcher.rundir import RunDir
from launcher.sites import Site
from launcher.sweep import sweep_above
from launcher.units import show_mib


@dataclass(frozen=True)
class Kept:
    """A checkpoint that is there. `loss` is the mean of the steps since the one before."""

    step: int
    path: Path
    loss: float | None


def kept_checkpoints(run_dir: Path) -> list[Kept]:
    """The published checkpoints of a run, oldest first."""
    found = []
    for path in sorted(RunDir(run_dir).checkpoints("train").glob("step-*")):
        if manifest := read_json(path / "manifest.json"):
            found.append(Kept(int(path.name.removeprefix("step-")), path, manifest.get("loss")))
    return found


def export_again(
    plan: Plan, site: Site, *, step: int | None, to: Path | None, hint_run: str, run_id: str = ""
) -> Prepared:
    """A run that exports a checkpoint of `plan`'s, the newest without `step`; `to` is the folder to write.

    Raises UserError where there is no such checkpoint or the folder exists.
    """
    stage = next((stage for stage in plan.stages if stage.worker == "export"), None)
    if stage is None:
        raise UserError(f"{hint_run} trains nothing", hint="name a run with a train stage")
    if (engine := stage.options["train"]["engine"]) != "megatron":
        raise UserError(f"checkpoints of the {engine} engine are exported at the end of training only")
    kept = kept_checkpoints(Path(plan.run_dir))
    if not kept:
        raise UserError(f"{hint_run} has no checkpoint yet", hint="train.checkpoint.every_steps says when one is saved")
    chosen = next((each for each in kept if each.step == step), None) if step is not None else kept[-1]
    if chosen is None:
        there = ", ".join(
            f"{each.step} (loss {each.loss:.4f})" if each.loss is not None else str(each.step) for each in kept
        )
        raise UserError(f"{hint_run} has no checkpoint of step {step}", where="--step", hint=f"kept are {there}")
    if to is not None and to.exists():
        raise UserError(f"{to} exists", where="--to", hint="name a folder that is not there yet")
    names = {field.name for field in dataclasses.fields(ModelFacts)}  # an earlier release may have had fewer
    facts = ModelFacts(**{name: value for name, value in plan.model.items() if name in names})
    memory = max(stage.resources.memory_mib, round(extract_mib(facts, stage.options["train"]["precision"])))
    if memory > site.node.memory_mib:
        raise UserError(
            f"reading this checkpoint needs about {show_mib(memory)}, a node of {site.name} has "
            f"{show_mib(site.node.memory_mib)}"
        )
    name = f"{plan.name}-export"
    new_id = run_id or new_run_id(name)
    home = sweep_above(Path(plan.run_dir)) or RunDir(Path(plan.run_dir))
    files = RunDir(home.root.parent / new_id)
    linked = files.checkpoints(stage.name) / chosen.path.name
    options = {**stage.options, "checkpoint": str(linked), "to": str(to) if to is not None else ""}
    new = replace(
        plan,
        run_id=new_id,
        name=name,
        run_dir=str(files.root),
        stages=(
            replace(
                stage,
                depends_on=(),
                options=options,
                resources=replace(stage.resources, memory_mib=memory),
                estimate=Estimate(),
            ),
        ),
    )
    text = home.recipe.read_text(encoding="utf-8")
    prepared = Prepared(new, render(new, assets.folder("templates")), text, site, f"the site of {hint_run}")
    return replace(prepared, linked=((linked, chosen.path),))
