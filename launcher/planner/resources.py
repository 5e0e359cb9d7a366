"""What each stage asks of the scheduler: the recipe over the site over what is usual for such a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from launcher.errors import Fault
from launcher.plan import Resources, Resume
from launcher.recipe import Recipe
from launcher.sites import Partition, Site
from launcher.units import counted, show_mib, slurm_time

# Where a stage has no table of its own, these are looked at, in order.
_TABLES = {"baseline": ("baseline", "evaluate", "default")}

# sites have checked values, whose names say the unit
LEAST_MINUTES = 5  # a job that is told to stop before it has begun to work would ask for another for ever
_SITE_KEYS = {"memory": "memory_mib", "time_limit": "time_limit_minutes"}

_TIME_LIMIT_MINUTES = {"baseline": 120, "train": 1440, "export": 60, "evaluate": 120, "quantize": 240, "serve": 60}
_MAX_ATTEMPTS = {"train": 5}  # other stages: 2
_SERVE_START_MINUTES = 30  # to load a model and answer, beside keep_alive_minutes


@dataclass(frozen=True)
class Decided:
    """A stage's resources, how often it may crash, and what is wrong with what was asked for."""

    resources: Resources
    max_attempts: int
    resume: Resume
    faults: tuple[Fault, ...]


class _Asked:
    """The values that recipe and site give for one stage, and where each stands."""

    def __init__(self, table: str, recipe: Recipe, site: Site) -> None:
        self.table = table
        self._recipe = [
            (f"resources.{name}", getattr(recipe.resources, name)) for name in _TABLES.get(table, (table, "default"))
        ]
        self._site = [
            (f"{site.path}: defaults.{name}", site.defaults[name])
            for name in _TABLES.get(table, (table,))
            if name in site.defaults
        ]

    def value(self, key: str) -> Any:
        """The first value given, None where nobody gives one."""
        return next((value for _, value in self._given(key)), None)

    def where(self, key: str) -> str:
        """Where it is given; where it could be given otherwise."""
        return next((f"{place}.{key}" for place, _ in self._given(key)), f"resources.{self.table}.{key}")

    def of_recipe(self, key: str) -> Any:
        """The first value that the recipe gives."""
        return next((value for _, request in self._recipe if (value := getattr(request, key)) is not None), None)

    def own(self, key: str) -> Any:
        """The value of the stage's own table in the recipe."""
        return getattr(self._recipe[0][1], key)

    def _given(self, key: str) -> Iterator[tuple[str, Any]]:
        for place, request in self._recipe:
            if (value := getattr(request, key)) is not None:
                yield place, value
        for place, defaults in self._site:
            value = getattr(defaults, _SITE_KEYS.get(key, key), None)
            if value is not None and value != ():  # a site that gives no `extra` says nothing
                yield place, value


def partition_of(table: str, recipe: Recipe, site: Site) -> Partition | None:
    """The partition that a stage goes to; None where the site names none, or not this one."""
    name = _Asked(table, recipe, site).value("partition")
    return site.partition(name) if name else site.default_partition


def gpus_of(table: str, recipe: Recipe, site: Site) -> int:
    """GPUs per node of a stage: what was asked for, else all for training, none for export, one for other stages.

    A recipe that names training ranks per node and no GPUs gets a GPU for each rank, where there are GPUs. GPUs of
    [resources.default] are not asked for in a partition without any that the site has chosen for this stage.
    """
    asked = _Asked(table, recipe, site)
    here = gpus_there(partition_of(table, recipe, site), site)
    gpus: int | None = asked.of_recipe("gpus_per_node")
    if site.node.gpus and not here and not asked.own("gpus_per_node") and not asked.of_recipe("partition"):
        gpus = 0
    if gpus is None and table == "train" and (tasks := asked.of_recipe("tasks_per_node")):
        gpus = min(tasks, here)
    if gpus is None:
        gpus = asked.value("gpus_per_node")
    if gpus is None:
        gpus = {"train": here, "export": 0}.get(table, min(1, here))
    return gpus


def decide(table: str, recipe: Recipe, site: Site) -> Decided:
    """The resources of a stage with this table under [resources].

    Training has one rank per GPU, or on CPUs as many as the layout needs; every other stage is one rank.
    CPU cores and memory are the share of a node that goes with its GPUs or cores.
    """
    asked = _Asked(table, recipe, site)
    faults: list[Fault] = []
    node = site.node
    partition = partition_of(table, recipe, site)
    gpus = gpus_of(table, recipe, site)
    nodes, tasks = 1, 1
    if table == "train":
        nodes = asked.value("nodes") or 1
        layout = recipe.train.layout if recipe.train else None
        needed = layout.tensor * layout.pipeline * layout.context if layout else 1
        tasks = asked.value("tasks_per_node") or gpus or -(-needed // nodes)
    else:
        for key in ("nodes", "tasks_per_node"):
            if (asked.own(key) or 1) > 1:
                faults.append(Fault(f"resources.{table}.{key}", f"{table} is one rank", f"remove {key}"))
    share = node.cpus
    if node.gpus and (gpus or table != "train"):  # a small stage without GPUs leaves the others' cores alone
        share = node.cpus * max(1, gpus) // node.gpus
    cpus = asked.value("cpus_per_task") or max(1, share // tasks)
    resume = _resume(recipe, site, faults)
    part = max(min(1.0, tasks * cpus / node.cpus), min(1.0, gpus / node.gpus) if node.gpus else 0.0)
    memory = asked.value("memory") or int(node.memory_mib * part)
    resources = Resources(
        nodes=nodes,
        tasks_per_node=tasks,
        cpus_per_task=cpus,
        gpus_per_node=gpus,
        memory_mib=memory,
        time_limit_minutes=_time_limit(asked, table, recipe, partition),
        partition=asked.value("partition") or (partition.name if partition else ""),
        account=asked.value("account") or site.account,
        qos=asked.value("qos") or site.qos,
        constraint=asked.value("constraint") or "",
        extra=(*site.quirks.extra, *(asked.value("extra") or ())),
        gres=gres_of(gpus, site),
        requeue=resume.mode == "requeue",
        whole_nodes=site.quirks.no_mem,
    )
    faults += faults_of(asked.where, resources, site, partition)
    if table == "train":
        faults += _train_faults(asked, resources)
    if table == "serve":
        faults += _serve_faults(asked, resources, recipe)
    attempts = asked.value("max_attempts") or _MAX_ATTEMPTS.get(table, 2)
    return Decided(resources, attempts, resume, tuple(faults))


def _resume(recipe: Recipe, site: Site, faults: list[Fault]) -> Resume:
    """How a stage comes back; appends what this site cannot do."""
    given = recipe.resume
    mode = given.mode or ("chain" if site.quirks.no_requeue else "requeue")
    if mode == "requeue" and site.quirks.no_requeue:
        faults.append(Fault("resume.mode", f"site {site.name} refuses requeueing", 'use mode = "chain"'))
    return Resume(
        mode=mode,
        continuations=given.continuations if mode == "chain" else 0,
        **given.model_dump(exclude={"mode", "continuations"}),
    )


def _time_limit(asked: _Asked, table: str, recipe: Recipe, partition: Partition | None) -> int:
    given: int | None = asked.value("time_limit")
    if given:
        return given
    usual = _TIME_LIMIT_MINUTES[table]
    if table == "serve" and recipe.serve:
        usual = max(usual, recipe.serve.keep_alive_minutes + _SERVE_START_MINUTES)
    limit = partition.time_limit_minutes if partition else None
    return min(usual, limit) if limit else usual


def gpus_there(partition: Partition | None, site: Site) -> int:
    """GPUs of a node of this partition."""
    return site.node.gpus if partition is None or partition.gpus is None else partition.gpus


def gres_of(gpus: int, site: Site) -> str:
    """--gres for so many GPUs of a node, "" where the site wants them asked for otherwise."""
    if not gpus or site.quirks.gpu_option != "gres":
        return ""
    kind = f"{site.node.gpu_type}:" if site.node.gpu_type else ""
    return f"gpu:{kind}{gpus}"


def faults_of(where: Callable[[str], str], need: Resources, site: Site, partition: Partition | None) -> list[Fault]:
    """What this site can never give. `where` says where a key of [resources] was given."""
    faults: list[Fault] = []

    def fault(key: str, message: str, hint: str) -> None:
        faults.append(Fault(where(key), message, hint))

    node = site.node
    names = [known.name for known in site.partitions]
    if need.partition and partition is None:
        if names:
            fault("partition", f"site {site.name} has no partition {need.partition!r}", "it has " + ", ".join(names))
        elif site.scheduler == "local":
            fault("partition", "the local scheduler has no partitions", "remove partition, or choose another --site")
    there = gpus_there(partition, site)
    place = f"partition {partition.name}" if partition and partition.gpus is not None else f"site {site.name}"
    if need.gpus_per_node and not there:
        message = f"{counted(need.gpus_per_node, 'GPU')} asked for, {place} has none"
        fault("gpus_per_node", message, "gpus_per_node = 0 runs on CPUs")
    elif need.gpus_per_node > there:
        fault("gpus_per_node", f"{need.gpus_per_node} is more than the {there} GPUs of a node", f"use {there} or less")
    if node.count and need.nodes > node.count:
        fault(
            "nodes",
            f"{need.nodes} is more than the {node.count} nodes of site {site.name}",
            f"use {node.count} or less",
        )
    if need.tasks_per_node * need.cpus_per_task > node.cpus:
        ranks, cores = counted(need.tasks_per_node, "rank"), counted(need.cpus_per_task, "core")
        message = f"{ranks} of {cores} need more than the {node.cpus} of a node"
        most = node.cpus // need.tasks_per_node
        fault("cpus_per_task", message, f"use {counted(most, 'core')} a rank" if most else "use fewer ranks")
    if need.memory_mib > node.memory_mib:
        message = f"{show_mib(need.memory_mib)} is more than the {show_mib(node.memory_mib)} of a node"
        fault("memory", message, "use more nodes, or less memory")
    if partition and partition.time_limit_minutes and need.time_limit_minutes > partition.time_limit_minutes:
        limit, wanted = slurm_time(partition.time_limit_minutes), slurm_time(need.time_limit_minutes)
        fault("time_limit", f"{wanted} is over the limit of partition {partition.name}", f"the limit is {limit}")
    if need.time_limit_minutes < LEAST_MINUTES:
        message = (
            f"{counted(need.time_limit_minutes, 'minute')} is too short: jobs are told to stop 2 to 3 minutes before"
        )
        fault("time_limit", message, f"use {LEAST_MINUTES} minutes or more")
    return faults


def _train_faults(asked: _Asked, need: Resources) -> list[Fault]:
    if not need.gpus_per_node or need.tasks_per_node == need.gpus_per_node:
        return []
    message = f"{counted(need.tasks_per_node, 'rank')} for {counted(need.gpus_per_node, 'GPU')}"
    hint = f"training runs one rank per GPU: tasks_per_node = {need.gpus_per_node}"
    return [Fault(asked.where("tasks_per_node"), message, hint)]


def _serve_faults(asked: _Asked, need: Resources, recipe: Recipe) -> list[Fault]:
    minutes = recipe.serve.keep_alive_minutes if recipe.serve else 0
    if minutes < need.time_limit_minutes:
        return []
    message = f"{minutes} is not shorter than the stage's time limit of {need.time_limit_minutes} minutes"
    return [Fault("serve.keep_alive_minutes", message, f"shorten it, or raise {asked.where('time_limit')}")]
