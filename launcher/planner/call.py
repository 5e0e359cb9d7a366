"""The plan of a function call: one stage, what the caller asks for over what the site is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from launcher.errors import Fault, InputError, UserError
from launcher.plan import CALL, Environment, Json, Plan, Resources, Resume, Stage
from launcher.planner.make import Identity
from launcher.planner.resources import faults_of, gres_of
from launcher.sites import Site, SiteEnvironment, resolve_environment

_USUAL_MINUTES = 60
_OWN = "own"  # the role of an interpreter that the caller names


@dataclass(frozen=True)
class CallRequest:
    """What a caller asks for; None and "" leave it to the site. The names are those of a recipe's [resources].

    `environment` is a role of the site's; without one, `python` is the interpreter. `places` says how the caller
    writes a key, for messages.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int = 0
    memory: int | None = None  # MiB per node
    time_limit: int | None = None  # minutes
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    extra: tuple[str, ...] = ()
    environment: str = ""
    python: str = ""
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def where(self, key: str) -> str:
        """How the caller writes a key."""
        return self.places.get(key, key)


def plan_call(
    request: CallRequest,
    *,
    name: str,
    options: Mapping[str, Json],
    site: Site,
    identity: Identity,
    lock_hashes: Mapping[str, str],
) -> Plan:
    """One stage that calls a function. Without GPUs a rank gets one core, with them its share of the node.

    Raises InputError with everything that the site cannot give.
    """
    partition = site.partition(request.partition) if request.partition else site.default_partition
    resources = _resources(request, site, (partition.time_limit_minutes if partition else None) or _USUAL_MINUTES)
    if not resources.partition and partition:
        resources = dataclasses.replace(resources, partition=partition.name)
    faults = list(faults_of(request.where, resources, site, partition))
    environment = None
    try:
        environment = _environment(request, site, lock_hashes)
    except UserError as error:
        faults += error.faults
    if faults or environment is None:
        raise InputError(faults)
    stage = Stage(
        name=CALL,
        worker=CALL,
        resources=resources,
        environment=environment,
        options=dict(options),
        max_attempts=1,  # a function that raises would raise again; preemption is no crash
        # nobody knows how often a function says that it is alive; no further jobs are submitted, since a job is one id
        resume=Resume(mode="requeue" if resources.requeue else "chain", hang_factor=0.0),
    )
    return Plan(
        run_id=identity.run_id,
        name=name,
        run_dir=str(PurePosixPath(site.runs_dir) / identity.run_id),
        site=site.name,
        scheduler=site.scheduler,
        user=identity.user,
        version=identity.version,
        git_sha=identity.git_sha,
        recipe_path=identity.recipe_path,
        recipe={},
        model={},
        data_hash="",
        stages=(stage,),
    )


def _resources(request: CallRequest, site: Site, limit_minutes: int) -> Resources:
    node = site.node
    gpus = request.gpus_per_node
    tasks = request.tasks_per_node
    cpus = request.cpus_per_task
    if cpus is None:
        cpus = max(1, node.cpus * min(gpus, node.gpus) // node.gpus // tasks) if gpus and node.gpus else 1
    part = max(min(1.0, tasks * cpus / node.cpus), min(1.0, gpus / node.gpus) if node.gpus else 0.0)
    return Resources(
        nodes=request.nodes,
        tasks_per_node=tasks,
        cpus_per_task=cpus,
        gpus_per_node=gpus,
        memory_mib=request.memory or int(node.memory_mib * part),
        time_limit_minutes=request.time_limit or min(_USUAL_MINUTES, limit_minutes),
        partition=request.partition,
        account=request.account or site.account,
        qos=request.qos or site.qos,
        constraint=request.constraint,
        extra=(*site.quirks.extra, *request.extra),
        gres=gres_of(gpus, site),
        requeue=not site.quirks.no_requeue,
        whole_nodes=site.quirks.no_mem,
    )


def _environment(request: CallRequest, site: Site, lock_hashes: Mapping[str, str]) -> Environment:
    role = request.environment
    if not role:
        own = SiteEnvironment(_OWN, "venv", python=request.python)
        return resolve_environment(dataclasses.replace(site, environments={_OWN: own}), _OWN, "")
    if role not in site.environments:
        known = ", ".join(site.environments) or "none"
        raise InputError(
            [Fault(request.where("environment"), f"site {site.name} has no environment {role!r}", f"it has {known}")]
        )
    return resolve_environment(site, role, lock_hashes.get(role, ""))
