"""A sweep's plans divided: what is done once, by each point, or by the best one; and which points share scripts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from launcher.errors import Fault, InputError
from launcher.plan import Estimate, Json, Plan, Stage
from launcher.planner.resources import decide
from launcher.recipe import Recipe
from launcher.recipe.preference import FORMATS
from launcher.recipe.sections import Sweep as SweepTable
from launcher.sites import Site
from launcher.sweep import METRICS, SELECT, Point, Sweep, arranged

_SELECT_MEMORY_MIB = 1024
_SELECT_MINUTES = 10


@dataclass(frozen=True)
class SweepPlan:
    """A whole sweep, decided, but for the sizes of its arrays."""

    plan: Plan  # the run's own; of stages that each point has, those of the first point that has them
    plans: tuple[Plan, ...]  # of the points, by number; `placed` gives them their folders
    groups: tuple[tuple[Point, ...], ...]  # points whose jobs ask for the same share scripts
    table: SweepTable
    each: tuple[str, ...]
    best: tuple[str, ...]

    def placed(self, largest: int) -> tuple[Sweep, tuple[Plan, ...]]:
        """The sweep with arrays of at most `largest` points, and the points' plans with their folders."""
        points = arranged(self.groups, largest)
        root = PurePosixPath(self.plan.run_dir)
        plans = tuple(
            replace(plan, run_dir=str(root / "points" / str(point.array) / str(point.task)))
            for plan, point in zip(self.plans, points, strict=True)
        )
        table = self.table
        return Sweep(points, self.each, self.best, table.metric, table.goal, table.concurrency), plans

    @property
    def everything(self) -> tuple[Stage, ...]:
        """Every stage that will run, each as often as it does."""
        once = tuple(stage for stage in self.plan.stages if stage.name not in self.each)
        return (*once, *(stage for plan in self.plans for stage in plan.stages if stage.name in self.each))


def plan_sweep(
    recipe: Recipe,
    plans: Sequence[Plan],
    values: Sequence[dict[str, Json]],
    *,
    run_id: str,
    run_dir: str,
    resolved: dict[str, Json],
    site: Site,
    warnings: Sequence[str] = (),
) -> SweepPlan:
    """The sweep whose points have these plans and values. Raises InputError with what is wrong with it."""
    table = recipe.sweep
    assert table is not None
    names = _names(plans)
    metric_stage = table.metric.partition(".")[0]
    if faults := list(_metric_faults(table, plans, names)):
        raise InputError(faults)
    shared = _shared(plans, names)
    before = _ancestors(metric_stage, plans)
    each = tuple(name for name in names if name not in shared)
    best: tuple[str, ...] = ()
    if table.then == "best":
        best = tuple(name for name in each if name not in before)
        each = tuple(name for name in each if name in before)
    faults = [*_same_for_all(table, metric_stage, shared), *_best_faults(best, plans), *_array_faults(each, plans)]
    if faults:
        raise InputError(faults)
    first = {name: next(plan.stage(name) for plan in plans if _has(plan, name)) for name in names}
    select = (_select(first[metric_stage], recipe, site),) if table.then == "best" else ()
    stages = (
        *(_without(first[name], each) if name in shared else first[name] for name in names if name not in best),
        *select,
        *(_after_select(first[name], each) for name in best),
    )
    whole = replace(
        plans[0],
        run_id=run_id,
        run_dir=run_dir,
        recipe=resolved,
        stages=stages,
        secrets=tuple(dict.fromkeys(name for plan in plans for name in plan.secrets)),
        warnings=tuple(dict.fromkeys([*warnings, *(text for plan in plans for text in plan.warnings)])),
    )
    return SweepPlan(whole, tuple(plans), _groups(plans, values, each), table, each, best)


def _names(plans: Sequence[Plan]) -> list[str]:
    """The stages of all points, each after those that it depends on."""
    names: list[str] = []
    for plan in plans:
        at = 0
        for stage in plan.stages:
            if stage.name not in names:
                names.insert(at, stage.name)
            at = names.index(stage.name) + 1
    return names


def _has(plan: Plan, name: str) -> bool:
    return any(stage.name == name for stage in plan.stages)


def _reads(stage: Stage) -> set[str]:
    """The stages whose results a stage is given; on a small machine it also waits for others that it does not need."""
    found: set[str] = set()
    for options in (stage.options, *(group.options for group in stage.groups)):
        model = options.get("model")
        source = model.get("artifact_of") if isinstance(model, dict) else None
        found |= {name for name in (source, options.get("train_stage")) if name}
    return found


def _ancestors(name: str, plans: Sequence[Plan]) -> set[str]:
    """The stage and all whose results it rests on."""
    found = {name}
    for plan in plans:
        for stage in reversed(plan.stages):
            if stage.name in found:
                found |= _reads(stage)
    return found


def _shared(plans: Sequence[Plan], names: Sequence[str]) -> set[str]:
    """The stages that are the same for all points and rest on none that differs."""
    shared: set[str] = set()
    for name in names:
        stages = [replace(plan.stage(name), estimate=Estimate()) for plan in plans if _has(plan, name)]
        same = len(stages) == len(plans) and all(stage == stages[0] for stage in stages)
        if same and _reads(stages[0]) <= shared:
            shared.add(name)
    return shared


def _as_scripted(stage: Stage) -> Stage:
    """What of a stage is in its script: not what its worker is told, nor what people read."""
    groups = tuple(replace(group, options={}) for group in stage.groups)
    return replace(stage, options={}, estimate=Estimate(), layout="", groups=groups, depends_on=())


def _groups(
    plans: Sequence[Plan], values: Sequence[dict[str, Json]], each: Sequence[str]
) -> tuple[tuple[Point, ...], ...]:
    """Points that can be tasks of the same arrays: the scripts of their stages are equal."""
    groups: dict[str, list[Point]] = {}
    for number, (plan, own) in enumerate(zip(plans, values, strict=True)):
        key = repr([_as_scripted(stage) for stage in plan.stages if stage.name in each])
        groups.setdefault(key, []).append(Point(number, 0, 0, dict(own)))
    return tuple(tuple(group) for group in groups.values())


def _metric_faults(table: SweepTable, plans: Sequence[Plan], names: Sequence[str]) -> Iterator[Fault]:
    stage, dot, metric = table.metric.partition(".")
    if not dot or stage not in names:
        close = difflib.get_close_matches(stage, names, n=1)
        hint = f"did you mean {close[0]}?" if close else "its stages are " + ", ".join(names)
        yield Fault("sweep.metric", f"there is no stage {stage!r} here", hint + '; write "evaluate.accuracy"')
        return
    plan = next(plan for plan in plans if _has(plan, stage))
    if not all(_has(other, stage) for other in plans):
        yield Fault("sweep.metric", f"not every point has a stage {stage}", "choose the metric of another stage")
    known = list(METRICS.get(plan.stage(stage).worker, ()))
    options = plan.stage(stage).options
    if isinstance(options.get("evaluate"), dict) and not options["evaluate"].get("perplexity"):
        known.remove("perplexity")
    if plan.stage(stage).worker == "train":
        validated = bool(options["train"].get("validation"))
        compared = FORMATS.get(options["train"]["method"]) == "preference"
        for name, there in (("validation_loss", validated), ("validation_accuracy", validated and compared)):
            if not there:
                known.remove(name)
    if metric not in known:
        close = difflib.get_close_matches(metric, known, n=1)
        hint = f"did you mean {stage}.{close[0]}?" if close else "it has " + ", ".join(known)
        yield Fault("sweep.metric", f"stage {stage} has no metric {metric!r} to compare points by", hint)


def _same_for_all(table: SweepTable, metric_stage: str, shared: set[str]) -> Iterator[Fault]:
    if metric_stage in shared:
        swept = ", ".join(table.parameters)
        message = f"{metric_stage} is the same for all points: {swept} does not change it"
        yield Fault("sweep.metric", message, "choose the metric of a stage that the sweep changes")


def _best_faults(best: Sequence[str], plans: Sequence[Plan]) -> Iterator[Fault]:
    """A job is submitted before the best point is known: what it asks for cannot depend on which one that is."""
    for name in best:
        if not all(_has(plan, name) for plan in plans):
            yield Fault("sweep.then", f"not every point has a stage {name}", 'write then = "each"')
        elif len({repr(_as_scripted(plan.stage(name))) for plan in plans}) > 1:
            message = f"what {name} asks for differs between points, and it is submitted before the best is known"
            yield Fault("sweep.then", message, f'write then = "each", or do not sweep what {name} asks for')


def _array_faults(each: Sequence[str], plans: Sequence[Plan]) -> Iterator[Fault]:
    for name in each:
        if any(plan.stage(name).het for plan in plans if _has(plan, name)):
            message = f"{name} is a heterogeneous job, which Slurm does not take as a job array"
            yield Fault("sweep", message, "give its groups nodes of one type, so that one allocation holds them")


def _without(stage: Stage, each: Sequence[str]) -> Stage:
    """A stage that is done once waits for no stage of the points: that was only to keep a small machine free."""
    return replace(stage, depends_on=tuple(name for name in stage.depends_on if name not in each))


def _after_select(stage: Stage, each: Sequence[str]) -> Stage:
    return replace(stage, depends_on=(SELECT, *_without(stage, each).depends_on))


def _select(measured: Stage, recipe: Recipe, site: Site) -> Stage:
    """The stage that chooses the best point: a few seconds of one core, in the environment of what was measured."""
    need = decide("export", recipe, site).resources
    small = replace(
        need,
        cpus_per_task=1,
        gpus_per_node=0,
        gres="",
        memory_mib=min(need.memory_mib, _SELECT_MEMORY_MIB),
        time_limit_minutes=min(need.time_limit_minutes, _SELECT_MINUTES),
    )
    return replace(
        measured,
        name=SELECT,
        worker="choose",
        resources=small,
        options={},
        depends_on=(measured.name,),
        layout="",
        max_attempts=2,
        estimate=Estimate(),
        groups=(),
        het=False,
    )
