"""Site file -> Site: every key known, every value checked, all faults in one go."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from launcher.errors import Fault, InputError
from launcher.sites.site import (
    ENVIRONMENT_KINDS,
    GPU_OPTIONS,
    ROLES,
    SCHEDULERS,
    STAGES,
    Network,
    Node,
    Partition,
    Price,
    Quirks,
    ResourceDefaults,
    Site,
    SiteEnvironment,
)
from launcher.sites.table import Reader, Table, close_hint, line_numbers


def load_site(path: Path, home: Path) -> Site:
    """Read and check one file; `~` in it stands for `home`.

    Raises InputError with every fault of the file, each with line and TOML path.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError([Fault(str(path), "the file is not UTF-8 text")]) from error
    except OSError as error:
        raise InputError([Fault(str(path), f"cannot be read: {error.strerror or error}")]) from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message, _, place = str(error).partition(" (at line ")
        line = place.partition(",")[0]
        raise InputError([Fault(f"{path}:{line}" if line.isdigit() else str(path), f"not TOML: {message}")]) from error
    reader = Reader(path, line_numbers(text), home)
    site = _site(reader, Table(reader, data, ""))
    if reader.faults:
        raise InputError(reader.faults)
    return site


def _site(reader: Reader, top: Table) -> Site:
    scheduler = top.text("scheduler", required=True, choices=SCHEDULERS)
    partitions = tuple(_partition(table) for table in top.tables("partitions"))
    site = Site(
        name=top.text("name", default=reader.path.stem, pattern=r"[A-Za-z0-9][A-Za-z0-9._-]*"),
        path=str(reader.path),
        description=top.text("description"),
        scheduler=scheduler,
        runs_dir=top.absolute("runs_dir", required=True),
        models_dir=top.absolute("models_dir", required=True),
        environments_dir=top.absolute("environments_dir", required=True),
        hostnames=top.texts("hostnames"),
        node=_node(top.table("node", required=True), scheduler),
        network=_network(top.table("network")),
        partitions=partitions,
        account=top.text("account"),
        qos=top.text("qos"),
        defaults={name: _defaults(name, table) for name, table in top.table("defaults").named(STAGES, "stage")},
        environments={
            role: _environment(role, table) for role, table in top.table("environments").named(ROLES, "role")
        },
        variables=top.table("variables").variables(),
        quirks=_quirks(top.table("quirks")),
        cost_per_gpu_hour=_price(top),
    )
    top.close()
    if ":" in site.runs_dir:
        reader.fault("runs_dir", "holds a colon, which separates the folders of PYTHONPATH", "use another folder")
    names = [partition.name for partition in partitions]
    for index, name in enumerate(names):
        if name and name in names[:index]:
            reader.fault(f"partitions[{index}].name", f"{name!r} is there twice")
    if sum(partition.default for partition in partitions) > 1:
        reader.fault("partitions", "more than one is marked default")
    for stage, defaults in site.defaults.items():
        if names and defaults.partition and defaults.partition not in names:
            reader.fault(
                f"defaults.{stage}.partition",
                f"{defaults.partition!r} is not one of the site's partitions",
                close_hint(defaults.partition, names),
            )
    if scheduler == "local":
        for key in ("partitions", "account", "qos", "quirks"):
            if top.has(key):
                reader.fault(key, "means nothing to the local scheduler", "remove it, or set scheduler to slurm")
    return site


def _node(table: Table, scheduler: str) -> Node:
    node = Node(
        cpus=table.integer("cpus", required=True, minimum=1) or 0,
        memory_mib=table.size("memory", required=True) or 0,
        count=table.integer("count", default=1 if scheduler == "local" else 0, minimum=1) or 0,
        gpus=table.integer("gpus", default=0, minimum=0) or 0,
        gpu_type=table.text("gpu_type"),
        gpu_memory_mib=table.size("gpu_memory") or 0,
    )
    if not node.gpus and (node.gpu_type or node.gpu_memory_mib):
        table.fault("gpus", "is 0 while gpu_type or gpu_memory is given", "say how many GPUs a node has")
    table.close()
    return node


def _network(table: Table) -> Network:
    network = Network(interface=table.text("interface"), rendezvous_host=table.text("rendezvous_host"))
    table.close()
    return network


def _partition(table: Table) -> Partition:
    partition = Partition(
        name=table.text("name", required=True),
        time_limit_minutes=table.minutes("time_limit"),
        gpus=table.integer("gpus", minimum=0),
        default=table.boolean("default"),
    )
    table.close()
    return partition


def _defaults(stage: str, table: Table) -> ResourceDefaults:
    defaults = ResourceDefaults(
        nodes=table.integer("nodes", minimum=1),
        tasks_per_node=table.integer("tasks_per_node", minimum=1),
        cpus_per_task=table.integer("cpus_per_task", minimum=1),
        gpus_per_node=table.integer("gpus_per_node", minimum=0),
        memory_mib=table.size("memory"),
        time_limit_minutes=table.minutes("time_limit"),
        partition=table.text("partition") or None,
        account=table.text("account") or None,
        qos=table.text("qos") or None,
        constraint=table.text("constraint") or None,
        extra=table.sbatch_words("extra"),
    )
    table.close()
    if stage != "train":
        for key in ("nodes", "tasks_per_node"):
            if (getattr(defaults, key) or 1) > 1:
                table.fault(key, f"{stage} is one rank", f"remove {key}")
    return defaults


def _environment(role: str, table: Table) -> SiteEnvironment:
    kind = table.text("kind", required=True, choices=ENVIRONMENT_KINDS)
    container = kind in ("pyxis", "apptainer")
    on_path = "python3" if container or kind == "modules" else ""
    environment = SiteEnvironment(
        role=role,
        kind=kind,
        python=table.expand(table.text("python", default=on_path, required=kind == "venv")),
        lock=table.absolute("lock"),
        modules=table.texts("modules", required=kind == "modules"),
        image=table.expand(table.text("image", required=container)),
        mounts=table.mounts("mounts"),
        variables=table.table("variables").variables(),
    )
    table.close()
    if kind == "venv" and environment.python and not environment.python.startswith("/"):
        table.fault("python", f"{environment.python!r} is not absolute", "write /the/venv/bin/python")
    if kind == "locked" and environment.python and not re.search(r"python\d\.\d+$", environment.python):
        hint = "name it with its version, /usr/bin/python3.11: a plan must know it without running it"
        table.fault("python", f"{environment.python!r} does not say its version", hint)
    if kind and kind != "locked" and environment.lock:
        table.fault("lock", f"means nothing to kind {kind!r}", "remove it, or use kind locked")
    for key in ("image", "mounts"):
        if kind and not container and table.has(key):
            table.fault(key, f"means nothing to kind {kind!r}", "remove it, or use kind pyxis or apptainer")
    return environment


def _quirks(table: Table) -> Quirks:
    quirks = Quirks(
        gpu_option=table.text("gpu_option", default="gpus-per-node", choices=GPU_OPTIONS),
        no_requeue=table.boolean("no_requeue"),
        no_mem=table.boolean("no_mem"),
        extra=table.sbatch_words("extra"),
    )
    table.close()
    return quirks


def _price(top: Table) -> Price | None:
    text = top.text("cost_per_gpu_hour", pattern=r"\d+(\.\d+)? \S+", hint='an amount and a currency: "2.50 EUR"')
    amount, _, currency = text.partition(" ")
    return Price(float(amount), currency) if currency else None
