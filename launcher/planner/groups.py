"""Groups of one stage laid over nodes: one allocation carved into job steps, or a heterogeneous job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.errors import Fault
from launcher.plan import Group, Resources, Stage
from launcher.sites import Site
from launcher.units import counted, show_mib


@dataclass(frozen=True)
class Laid:
    """Where the groups of a stage run. `first_nodes` has an index for each, into all nodes of the stage.

    `resources` is the allocation that the groups divide; with `het` it is the first group's own.
    """

    het: bool
    resources: Resources
    first_nodes: tuple[int, ...]
    faults: tuple[Fault, ...] = ()


def co_schedule(stage: Stage, groups: Sequence[Group], site: Site, *, where: str) -> tuple[Stage, tuple[Fault, ...]]:
    """The stage with its groups, the leading one first, in the places that the site has for them."""
    laid = lay_groups([group.resources for group in groups], site, where=where)
    placed = [replace(group, first_node=first) for group, first in zip(groups, laid.first_nodes, strict=True)]
    lead = placed[0]
    found = replace(
        stage,
        worker=lead.worker,
        environment=lead.environment,
        options=lead.options,
        resources=laid.resources,
        groups=tuple(placed),
        het=laid.het,
    )
    return found, laid.faults


def lay_groups(needs: Sequence[Resources], site: Site, *, where: str) -> Laid:
    """Lay groups, the leading one first, over the nodes of a site.

    Nodes of one kind are one allocation, each group on nodes of its own: all its parts start together, it can be an
    array, and backfill is not needed. Different kinds are a heterogeneous job; the local scheduler's nodes are all
    equal, so it never needs one. Where the site has fewer nodes than that takes, groups of as many nodes each share
    them, if a node holds them together. `where` names the place in faults.
    """
    alone = [0, *(sum(need.nodes for need in needs[:index]) for index in range(1, len(needs)))]
    total, there = sum(need.nodes for need in needs), site.node.count
    one_place = len({_place(need) for need in needs}) == 1
    if there and total > there and one_place and len({need.nodes for need in needs}) == 1:
        if not (lacking := _too_much(needs, site)):
            return Laid(False, _together(needs), (0,) * len(needs))
        message = f"the groups need {total} nodes of the {there} there are, and do not fit {_nodes(needs)} together"
        return Laid(False, needs[0], (0,) * len(needs), (Fault(where, f"{message}: {lacking}", "ask for less"),))
    faults: tuple[Fault, ...] = ()
    if there and total > there:
        message = f"the groups need {total} nodes, more than the {there} of site {site.name}"
        faults = (Fault(where, message, f"use {there} or less in all"),)
    if one_place and (site.scheduler == "local" or len({_node(need) for need in needs}) == 1):
        return Laid(False, _side_by_side(needs), tuple(alone), faults)
    return Laid(True, needs[0], tuple(alone), faults)


def _place(need: Resources) -> tuple[object, ...]:
    """What is said once for an allocation."""
    return need.partition, need.account, need.qos, need.constraint, need.extra, need.requeue, need.whole_nodes


def _node(need: Resources) -> tuple[object, ...]:
    """What an allocation has on every one of its nodes. CPU cores are left out: those of a node are cheap to have."""
    return need.gpus_per_node, need.gres, 0 if need.whole_nodes else need.memory_mib


def _side_by_side(needs: Sequence[Resources]) -> Resources:
    """The allocation in which each group has nodes of its own, so every node has what the largest group asks."""
    largest = max(needs, key=lambda need: need.gpus_per_node)
    return replace(
        _one_task(needs[0], max(need.tasks_per_node * need.cpus_per_task for need in needs)),
        nodes=sum(need.nodes for need in needs),
        gpus_per_node=largest.gpus_per_node,
        gres=largest.gres,
        memory_mib=max(need.memory_mib for need in needs),
        time_limit_minutes=max(need.time_limit_minutes for need in needs),
    )


def _together(needs: Sequence[Resources]) -> Resources:
    """The allocation in which every node has a part of each group."""
    gpus = sum(need.gpus_per_node for need in needs)
    kind = next((need.gres.rpartition(":")[0] for need in needs if need.gres), "")
    return replace(
        _one_task(needs[0], sum(need.tasks_per_node * need.cpus_per_task for need in needs)),
        gpus_per_node=gpus,
        gres=f"{kind}:{gpus}" if kind else "",
        memory_mib=sum(need.memory_mib for need in needs),
        time_limit_minutes=max(need.time_limit_minutes for need in needs),
    )


def _one_task(need: Resources, cpus: int) -> Resources:
    """An allocation says how many cores a node has; how many tasks share them is each job step's affair."""
    return replace(need, tasks_per_node=1, cpus_per_task=cpus)


def _too_much(needs: Sequence[Resources], site: Site) -> str:
    """What a node lacks to hold all groups; "" if it holds them."""
    all_of_them, node = _together(needs), site.node
    lacking = []
    if all_of_them.gpus_per_node > node.gpus:
        lacking.append(f"{counted(all_of_them.gpus_per_node, 'GPU')} of {node.gpus}")
    if all_of_them.cpus_per_task > node.cpus:
        lacking.append(f"{counted(all_of_them.cpus_per_task, 'core')} of {node.cpus}")
    if all_of_them.memory_mib > node.memory_mib:
        lacking.append(f"{show_mib(all_of_them.memory_mib)} of {show_mib(node.memory_mib)}")
    return ", ".join(lacking)


def _nodes(needs: Sequence[Resources]) -> str:
    return counted(needs[0].nodes, "node")
