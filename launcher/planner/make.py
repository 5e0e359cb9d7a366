"""make_plan: stages, resources, environments, checks and estimates put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from launcher.errors import Fault, InputError, UserError
from launcher.models import FoundModel, ModelFacts
from launcher.plan import Environment, Plan, Resources, Stage
from launcher.planner import checks, estimates
from launcher.planner.boxes import Box, boxes
from launcher.planner.engines import layout_text, memory_hint
from launcher.planner.resources import decide, gpus_of
from launcher.recipe import Recipe
from launcher.sites import Site, resolve_environment
from launcher.units import counted, show_mib

_TABLES = ("baseline", "train", "export", "evaluate", "quantize", "serve")


@dataclass(frozen=True)
class Identity:
    """What tells one run from another; nothing of it is looked up by the planner."""

    run_id: str
    user: str
    git_sha: str  # of the recipe's repository; "" where there is none
    recipe_path: str
    version: str  # of swiftlaunch


def make_plan(
    recipe: Recipe,
    *,
    resolved: Mapping[str, Any],
    site: Site,
    model: FoundModel,
    data_hash: str,
    data_faults: Sequence[Fault],
    identity: Identity,
    lock_hashes: Mapping[str, str],
) -> Plan:
    """The plan of one run: the same arguments give an equal plan.

    `resolved` is the recipe as JSON with every default; workers get its sections as options. `lock_hashes` are those
    of the locked environments, by role. Raises InputError with every fault that was found, `data_faults` included.
    """
    faults = list(data_faults)
    facts = model.facts
    decided = {table: decide(table, recipe, site) for table in _TABLES}
    found = boxes(
        recipe,
        resolved,
        model=_base(recipe, model),
        gpus={table: gpus_of(table, recipe, site) for table in _TABLES},
        one_at_a_time=site.scheduler == "local" or site.node.count == 1,
        peak_tflops=estimates.peak_tflops(recipe, decided["train"].resources, site),
    )
    if not found.stages:
        faults.append(
            Fault("", "the recipe asks for nothing", "add a table: [train], [evaluate], [quantize] or [serve]")
        )
    if model.path is None:
        name = _model_name(recipe)
        hint = f"bring its Hugging Face folder to {site.models_dir}/{name}, or name one as model.path"
        if facts.package:
            hint = f"run: swiftlaunch models fetch {name} {site.option}"
        faults.append(Fault("model.name", f"{name} is not on site {site.name}", hint))
    for table in dict.fromkeys(box.table for box in found.stages):
        faults += decided[table].faults
    needs = {box.name: decided[box.table].resources for box in found.stages}
    environments = {}
    for box in found.stages:
        try:
            environments[box.name] = _environment(box, needs[box.name], recipe, site, lock_hashes)
        except UserError as error:
            faults += error.faults
    faults += checks.quantize_faults(recipe, facts)
    faults += checks.serve_faults(found.stages, facts, needs)
    warnings = list(found.warnings)
    if "train" in needs:
        train_faults = list(checks.train_faults(recipe, facts, needs["train"], site))
        faults += train_faults
        if not train_faults:
            warnings += checks.train_warnings(recipe, facts, needs["train"])
    estimated = {}
    if not faults:
        estimated = {box.name: estimates.estimate(box, needs[box.name], recipe, facts, site) for box in found.stages}
        memory_faults, memory_warnings = _memory(found.stages, needs, estimated, recipe, facts, site)
        faults += memory_faults
        warnings += memory_warnings
    if faults:
        raise InputError(list(dict.fromkeys(faults)))
    warnings += checks.serve_warnings(recipe, site, needs.get("serve"))
    readers = [environments[box.name] for box in found.stages if box.options.get("data")]
    warnings += checks.container_warnings(resolved.get("data"), readers)
    warnings += checks.unused_tables(recipe, found.stages)
    return Plan(
        run_id=identity.run_id,
        name=recipe.name,
        run_dir=str(PurePosixPath(site.runs_dir) / identity.run_id),
        site=site.name,
        scheduler=site.scheduler,
        user=identity.user,
        version=identity.version,
        git_sha=identity.git_sha,
        recipe_path=identity.recipe_path,
        recipe=dict(resolved),
        model={**_json(facts), "path": str(model.path), "source": model.source},
        data_hash=data_hash,
        stages=tuple(
            Stage(
                name=box.name,
                worker=box.worker,
                resources=needs[box.name],
                environment=environments[box.name],
                options=box.options,
                depends_on=box.depends_on,
                layout=layout_text(recipe, needs[box.name].world_size) if box.name == "train" else "",
                max_attempts=decided[box.table].max_attempts,
                resume=decided[box.table].resume,
                estimate=estimated[box.name],
            )
            for box in found.stages
        ),
        secrets=tuple(recipe.env.secrets),
        warnings=tuple(warnings),
    )


def _environment(box: Box, need: Resources, recipe: Recipe, site: Site, lock_hashes: Mapping[str, str]) -> Environment:
    """The stage's environment: variables that every job wants, under the site's, under the recipe's."""
    environment = resolve_environment(site, box.role, lock_hashes.get(box.role, ""))
    if environment.lock and box.role not in lock_hashes:
        raise UserError(
            f"no lock file is shipped for the {box.role} environment",
            where=f"{site.path}: environments.{box.role}",
            hint='use kind = "venv", "modules", "pyxis" or "apptainer"',
        )
    variables = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(need.cpus_per_task),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if box.worker == "train":
        variables["CUDA_DEVICE_MAX_CONNECTIONS"] = "1"  # Megatron overlaps communication by the order of launches
    if site.network.interface:
        variables["TP_SOCKET_IFNAME"] = site.network.interface  # TensorPipe, beside gloo's and NCCL's own
    variables |= dict(environment.variables)
    variables |= recipe.env.variables
    return dataclasses.replace(environment, variables=tuple(sorted(variables.items())))


def _memory(
    stages: Iterable[Box],
    needs: Mapping[str, Resources],
    estimated: Mapping[str, Any],
    recipe: Recipe,
    facts: ModelFacts,
    site: Site,
) -> tuple[list[Fault], list[str]]:
    """Stages that cannot fit: a fault where weights and optimizer alone are too much, else a warning."""
    faults: list[Fault] = []
    warnings: list[str] = []
    for box in stages:
        need = needs[box.name]
        if need.gpus_per_node and not site.node.gpu_memory_mib:
            continue
        if need.gpus_per_node:
            there, what = float(site.node.gpu_memory_mib), f"{show_mib(site.node.gpu_memory_mib)} a GPU"
            if box.worker != "train":
                there *= need.gpus_per_node  # one rank divides its model among the GPUs
        else:
            there = need.memory_mib / need.tasks_per_node
            what = f"{show_mib(need.memory_mib)} for {counted(need.tasks_per_node, 'rank')}"
        wanted = estimated[box.name].memory_mib_per_rank
        least = estimates.train_memory(recipe, facts, need).states if box.worker == "train" else 0.0
        where = f"resources.{box.table}" if need.gpus_per_node else f"resources.{box.table}.memory"
        if least > there:
            message = f"weights, gradients and optimizer alone need {show_mib(least)} a rank, there is {what}"
            faults.append(Fault(where, message, memory_hint(recipe)))
        elif wanted > there:
            warnings.append(f"{where}: {box.name} needs about {show_mib(wanted)} a rank, there is {what}")
    return faults, warnings


def _base(recipe: Recipe, model: FoundModel) -> dict[str, Any]:
    """The base model as options hold it."""
    found = {"name": _model_name(recipe), "path": str(model.path) if model.path else ""}
    return found | ({"chat_template": model.chat_template} if model.chat_template else {})


def _model_name(recipe: Recipe) -> str:
    return recipe.model.name or PurePosixPath(recipe.model.path or "").name


def _json(facts: ModelFacts) -> dict[str, Any]:
    """Architecture facts as JSON has them: lists, not tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(facts).items()}
