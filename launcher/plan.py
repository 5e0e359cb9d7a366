"""The plan: a recipe and a site, decided. Frozen, JSON, no default left open; the job reads nothing else."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
CALL = "call"  # the stage of a run that calls a function, and its worker

Json = Any  # a JSON value: dict, list, str, int, float, bool or None


@dataclass(frozen=True)
class Resources:
    """What one stage asks of the scheduler. Memory is per node; 0 gpus is a CPU job."""

    nodes: int
    tasks_per_node: int
    cpus_per_task: int
    gpus_per_node: int
    memory_mib: int
    time_limit_minutes: int
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    extra: tuple[str, ...] = ()  # further sbatch options, a word each: "--exclusive"
    gres: str = ""  # "gpu:h100:8": GPUs are asked for by --gres, not by --gpus-per-node
    requeue: bool = True  # False: the site refuses --requeue, a stage has one attempt
    whole_nodes: bool = False  # True: the site refuses --mem

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True)
class Environment:
    """Where a stage's program and its libraries are. `kind`: venv, modules, pyxis or apptainer."""

    role: str
    kind: str
    python: str  # interpreter as the job calls it, absolute or a name on PATH
    modules: tuple[str, ...] = ()
    image: str = ""
    mounts: tuple[str, ...] = ()  # "source:target" each
    variables: tuple[tuple[str, str], ...] = ()  # exported in the job; never a secret
    lock: str = ""  # name of the lock file and its hash, for environments that swiftlaunch builds


@dataclass(frozen=True)
class Estimate:
    """What a stage is expected to need; None where there is nothing honest to say."""

    memory_mib_per_rank: int | None = None
    seconds: float | None = None
    gpu_hours: float | None = None
    basis: str = ""  # one line: what the figures rest on


@dataclass(frozen=True)
class Resume:
    """How a stage goes on after a stop or a crash; see the recipe's [resume]. Times are in seconds."""

    mode: str = "requeue"  # or chain: `continuations` further jobs are submitted at once, each after the one before
    continuations: int = 0
    backoff_seconds: int = 30
    backoff_limit_seconds: int = 900
    idle_attempts: int = 10
    hang_factor: float = 10.0  # 0: hangs are not looked for
    hang_floor_seconds: float = 600.0
    hang_start_seconds: float = 3600.0


@dataclass(frozen=True)
class Group:
    """Ranks that do one part of a stage beside other groups: train, sample. Each group is one job step.

    The first group of a stage leads: how it ends is how the stage ends. When an `essential` group fails, the others
    are ended; any other group is started again up to `max_restarts` times in an attempt, and then done without.
    """

    name: str
    worker: str
    resources: Resources
    environment: Environment
    options: dict[str, Json]
    first_node: int = 0  # index among the stage's nodes of the first that this group runs on
    essential: bool = True
    max_restarts: int = 0


@dataclass(frozen=True)
class Stage:
    """One box of the plan. `worker` names the module of launcher.work that does it.

    With `groups`, `worker`, `environment` and `options` are those of the first, and `resources` is the one allocation
    that the groups divide. With `het` each group has an allocation of its own in one heterogeneous job.
    """

    name: str
    worker: str
    resources: Resources
    environment: Environment
    options: dict[str, Json]  # the worker's inputs, every default written out
    depends_on: tuple[str, ...] = ()  # stages that must have succeeded (afterok)
    layout: str = ""  # for people: "PP2", "TP2+SP DP4"
    max_attempts: int = 1
    estimate: Estimate = field(default_factory=Estimate)
    groups: tuple[Group, ...] = ()
    het: bool = False
    resume: Resume = field(default_factory=Resume)

    @property
    def table(self) -> str:
        """Its table under the recipe's [resources]."""
        return table_of(self.name)

    def group(self, name: str) -> Group:
        """The group of that name. Raises KeyError."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)


@dataclass(frozen=True)
class Plan:
    """A whole run, decided."""

    run_id: str
    name: str
    run_dir: str  # absolute, on a file system that jobs see
    site: str
    scheduler: str  # local or slurm
    user: str
    version: str  # of swiftlaunch
    git_sha: str  # of the recipe's repository; "" where there is none
    recipe_path: str
    recipe: dict[str, Json]  # the resolved recipe, as JSON
    model: dict[str, Json]  # architecture facts of the base model
    data_hash: str  # of the data files, or of the generator's parameters
    stages: tuple[Stage, ...]
    secrets: tuple[str, ...] = ()  # names of variables, never values
    warnings: tuple[str, ...] = ()
    schema: int = SCHEMA

    def stage(self, name: str) -> Stage:
        """The stage of that name. Raises KeyError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def to_json(self) -> str:
        """Canonical text: the same plan gives the same bytes. A stage of one kind of rank says nothing of groups."""
        data = dataclasses.asdict(self)
        for stage in data["stages"]:
            if not stage["groups"]:
                del stage["groups"], stage["het"]
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def table_of(stage: str) -> str:
    """The table under the recipe's [resources] of the stage of that name."""
    name = stage.partition(".")[0]  # of an array of a sweep's points: "train.0"
    return {"evaluate-quantized": "quantize", "select": "export"}.get(name, name)


def job_comment(run_id: str, stage: str) -> str:
    """What marks a stage's jobs at the scheduler (sbatch --comment), so that they are found without their ids."""
    return f"swiftlaunch:{run_id}:{stage}"


def from_json(text: str) -> Plan:
    """The plan that `to_json` wrote. Raises ValueError for another schema or a broken text."""
    data = json.loads(text)
    if data.get("schema") != SCHEMA:
        raise ValueError(f"plan schema {data.get('schema')!r} is not {SCHEMA}: another swiftlaunch version wrote it")
    stages = tuple(_stage(stage) for stage in data.pop("stages"))
    for key in ("secrets", "warnings"):
        data[key] = tuple(data[key])
    return Plan(stages=stages, **data)


def _stage(data: dict[str, Json]) -> Stage:
    return Stage(
        resources=_resources(data.pop("resources")),
        environment=_environment(data.pop("environment")),
        estimate=Estimate(**data.pop("estimate")),
        depends_on=tuple(data.pop("depends_on")),
        groups=tuple(_group(group) for group in data.pop("groups", ())),
        resume=Resume(**data.pop("resume", {})),
        **data,
    )


def _group(data: dict[str, Json]) -> Group:
    return Group(resources=_resources(data.pop("resources")), environment=_environment(data.pop("environment")), **data)


def _resources(data: dict[str, Json]) -> Resources:
    return Resources(extra=tuple(data.pop("extra")), **data)


def _environment(data: dict[str, Json]) -> Environment:
    return Environment(
        modules=tuple(data.pop("modules")),
        mounts=tuple(data.pop("mounts")),
        variables=tuple((name, value) for name, value in data.pop("variables")),
        **data,
    )
