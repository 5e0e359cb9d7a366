"""A site as the planner sees it: frozen, checked, every folder absolute."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher import plan
from launcher.errors import UserError

ROLES = ("train", "sharded", "transformers", "gptq", "compressor", "vllm", "sglang")
IMPORTS = {  # what must import in the environment of a role
    "train": ("torch", "transformers", "megatron.core"),
    "sharded": ("torch", "transformers", "accelerate", "peft"),
    "transformers": ("torch", "transformers"),
    "gptq": ("torch", "transformers", "gptqmodel"),
    "compressor": ("torch", "transformers", "llmcompressor"),
    "vllm": ("torch", "vllm"),
    "sglang": ("torch", "sglang"),
}
STAGES = ("baseline", "train", "export", "evaluate", "quantize", "serve")
SCHEDULERS = ("local", "slurm")
ENVIRONMENT_KINDS = ("locked", "venv", "modules", "pyxis", "apptainer")
GPU_OPTIONS = ("gpus-per-node", "gres")


@dataclass(frozen=True)
class Node:
    """One compute node. `count` is 0 where the number of nodes is not said; gpu_memory_mib 0 where unknown."""

    cpus: int
    memory_mib: int
    count: int = 0
    gpus: int = 0
    gpu_type: str = ""
    gpu_memory_mib: int = 0


@dataclass(frozen=True)
class Network:
    """What ranks talk over. `rendezvous_host` is set only where rank 0's own host name does not work."""

    interface: str = ""
    rendezvous_host: str = ""


@dataclass(frozen=True)
class Partition:
    """`time_limit_minutes` is None without a limit; `gpus` per node is None where it is the site's node."""

    name: str
    time_limit_minutes: int | None = None
    gpus: int | None = None
    default: bool = False


@dataclass(frozen=True)
class ResourceDefaults:
    """What the site gives a stage whose recipe leaves it open; None leaves it open here too."""

    nodes: int | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    gpus_per_node: int | None = None
    memory_mib: int | None = None
    time_limit_minutes: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class SiteEnvironment:
    """Where the programs of one role are. `python` of a locked environment is the interpreter that builds it."""

    role: str
    kind: str  # of ENVIRONMENT_KINDS
    python: str = ""
    lock: str = ""  # lock file of a locked environment; "" for the shipped one
    modules: tuple[str, ...] = ()
    image: str = ""
    mounts: tuple[str, ...] = ()  # "source:target" each
    variables: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Quirks:
    """Where this site's sbatch differs from the usual."""

    gpu_option: str = "gpus-per-node"  # or gres: --gres=gpu[:TYPE]:N
    no_requeue: bool = False  # the site refuses --requeue
    no_mem: bool = False  # the site refuses --mem (whole nodes)
    extra: tuple[str, ...] = ()  # further sbatch words for every stage


@dataclass(frozen=True)
class Price:
    amount: float
    currency: str


@dataclass(frozen=True)
class Site:
    """A site, checked; folders are absolute."""

    name: str
    path: str  # of the file
    scheduler: str  # of SCHEDULERS
    runs_dir: str
    models_dir: str
    environments_dir: str
    node: Node
    description: str = ""
    hostnames: tuple[str, ...] = ()  # fnmatch patterns of login hosts
    network: Network = Network()
    partitions: tuple[Partition, ...] = ()
    account: str = ""
    qos: str = ""
    defaults: Mapping[str, ResourceDefaults] = field(default_factory=dict)  # by stage
    environments: Mapping[str, SiteEnvironment] = field(default_factory=dict)  # by role
    variables: tuple[tuple[str, str], ...] = ()
    quirks: Quirks = Quirks()
    cost_per_gpu_hour: Price | None = None
    asked: str = ""  # the path that it was chosen by; "" where its name finds it

    @property
    def option(self) -> str:
        """The words of a command that choose this site."""
        return f"--site {shlex.quote(self.asked or self.name)}"

    @property
    def default_partition(self) -> Partition | None:
        """The one marked default, else the first, else None."""
        marked = [partition for partition in self.partitions if partition.default]
        return next(iter((*marked, *self.partitions)), None)

    def partition(self, name: str) -> Partition | None:
        """The partition of that name, or None."""
        return next((partition for partition in self.partitions if partition.name == name), None)


def resolve_environment(site: Site, role: str, lock_hash: str) -> plan.Environment:
    """The environment as a plan holds it; `lock_hash` (12 hex digits) matters for locked ones only.

    Containers get the site's run and model folders mounted at the same place, since a job reads its plan there.
    Raises UserError if the site has no environment for the role.
    """
    wanted = site.environments.get(role)
    if wanted is None:
        raise UserError(
            f"site {site.name} has no environment for {role}",
            where=f"{site.path}: environments",
            hint=f'add {role} = {{ kind = "locked" }} (or venv, modules, pyxis, apptainer) under [environments]',
        )
    network = {}
    if site.network.interface:
        network["GLOO_SOCKET_IFNAME"] = network["NCCL_SOCKET_IFNAME"] = site.network.interface
    if site.network.rendezvous_host:
        network["SWIFTLAUNCH_RENDEZVOUS_HOST"] = site.network.rendezvous_host
    mounts = wanted.mounts
    if wanted.kind in ("pyxis", "apptainer"):
        mounts = _with_mounts(mounts, (site.runs_dir, site.models_dir))
    locked = wanted.kind == "locked"
    return plan.Environment(
        role=role,
        kind="venv" if locked else wanted.kind,
        python=str(environment_folder(site, role, lock_hash) / "bin/python") if locked else wanted.python,
        modules=wanted.modules,
        image=wanted.image,
        mounts=mounts,
        variables=tuple({**network, **dict(site.variables), **dict(wanted.variables)}.items()),
        lock=f"{role} {lock_hash}" if locked else "",
    )


def environment_folder(site: Site, role: str, lock_hash: str) -> Path:
    """Where the locked environment of a role is built."""
    return Path(site.environments_dir) / f"{role}-{lock_hash}"


def _with_mounts(mounts: tuple[str, ...], folders: tuple[str, ...]) -> tuple[str, ...]:
    """Add a mount for each folder that no mount already shows at its own place."""
    for folder in folders:
        shown = [Path(mount.split(":")[1]) for mount in mounts if mount.split(":")[0] == mount.split(":")[1]]
        if not any(Path(folder).is_relative_to(place) for place in shown):
            mounts = (*mounts, f"{folder}:{folder}")
    return mounts
