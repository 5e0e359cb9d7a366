"""Who may run: what a job may ever have, which nodes are free for it, whether its dependencies are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launcher.errors import Fault
from launcher.scheduler.base import Machine
from launcher.scheduler.local.script import Request
from launcher.scheduler.local.table import NEVER, Row
from launcher.states import State
from launcher.units import show_mib


def too_much(request: Request, machine: Machine, where: str) -> list[Fault]:
    """What a job asks beyond all that the machine can ever give."""
    faults = []
    for option, asked, available, unit in (
        ("nodes", request.nodes, machine.nodes, "nodes"),
        ("cpus", _cpus(request, machine), machine.cpus, "CPUs per node"),
        ("mem", request.memory_mib or 0, machine.memory_mib, "MiB per node"),
        ("gpus-per-node", request.gpus_per_node, machine.gpus, "GPUs per node"),
    ):
        if asked > available:
            shown = (show_mib(asked), show_mib(available)) if option == "mem" else (str(asked), str(available))
            what = f"asks for {shown[0]}" + (" of memory per node" if option == "mem" else f" {unit}")
            hint = "ask for less, or raise the site's [node] figures if this computer has more"
            faults.append(Fault(where, f"{what}; this machine has {shown[1]}", hint))
    return faults


def _cpus(request: Request, machine: Machine) -> int:
    return max(request.cpus_per_node, machine.cpus if request.exclusive else 0)


def allocate(request: Request, machine: Machine, running: Sequence[Row]) -> dict[int, list[int]] | None:
    """Nodes for a job, node index -> indices of its GPUs on this computer; None while too little is free."""
    chosen: dict[int, list[int]] = {}
    memory = machine.memory_mib if request.memory_mib == 0 else request.memory_mib or 0
    for node in range(machine.nodes):
        here = [row for row in running if node in row.allocation]
        cpus = machine.cpus - sum(_cpus(row.request, machine) for row in here)
        free_mib = machine.memory_mib - sum(
            machine.memory_mib if row.request.memory_mib == 0 else row.request.memory_mib or 0 for row in here
        )
        used = {gpu for row in here for gpu in row.allocation[node]}
        gpus = [gpu for gpu in range(node * machine.gpus, (node + 1) * machine.gpus) if gpu not in used]
        if cpus >= _cpus(request, machine) and free_mib >= memory and len(gpus) >= request.gpus_per_node:
            chosen[node] = gpus[: request.gpus_per_node]
            if len(chosen) == request.nodes:
                return chosen
    return None


def depend(row: Row, parents: Mapping[str, Sequence[Row]], tasks: Mapping[tuple[str, int | None], Row]) -> str:
    """Why a job still waits for others: "" when it does not, "Dependency", or NEVER when it can never start.

    `parents` are the jobs of each id that it names, `tasks` the same by id and task.
    """
    verdicts = set()
    for kind, job_id in row.request.dependencies:
        own = tasks.get((job_id, row.task))
        verdicts.add(_verdict(kind, parents[job_id] if kind != "aftercorr" else [own] if own else []))
    return NEVER if NEVER in verdicts else "Dependency" if "Dependency" in verdicts else ""


def _verdict(kind: str, parents: Sequence[Row]) -> str:
    states = [State(parent.state) for parent in parents]
    waiting = not all(state.terminal for state in states)
    failed = any(state.terminal and not state.succeeded for state in states)
    if not states:
        return NEVER
    if kind in ("afterok", "aftercorr") and failed:
        return NEVER
    if waiting:
        return "Dependency"
    return NEVER if kind == "afternotok" and not failed else ""
