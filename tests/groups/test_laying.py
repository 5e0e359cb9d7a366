from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.plan import Resources
from launcher.planner.groups import lay_groups
from launcher.sites import Node, Site

pytestmark = pytest.mark.unit

NEED = Resources(
    nodes=2, tasks_per_node=8, cpus_per_task=4, gpus_per_node=8, memory_mib=800_000, time_limit_minutes=60,
    partition="gpu",
)  # fmt: skip


def site(count: int = 0, scheduler: str = "slurm") -> Site:
    node = Node(cpus=64, memory_mib=1_000_000, count=count, gpus=8)
    return Site("here", "here.toml", scheduler, "/runs", "/models", "/environments", node)


def laid(sample: dict[str, Any], where: Site, train: Resources = NEED) -> Any:
    return lay_groups([train, replace(train, **sample)], where, where="resources.rl")


def test_nodes_of_one_kind_are_one_allocation() -> None:
    """Each group on nodes of its own, whatever its ranks; the longest time counts."""
    found = laid({"nodes": 3, "tasks_per_node": 2, "cpus_per_task": 20, "time_limit_minutes": 90}, site())
    assert (found.het, found.first_nodes, found.faults) == (False, (0, 2), ())
    asked = found.resources
    assert (asked.nodes, asked.tasks_per_node * asked.cpus_per_task, asked.gpus_per_node) == (5, 40, 8)
    assert asked.time_limit_minutes == 90


@pytest.mark.parametrize(
    "sample",
    [
        {"partition": "cpu"},
        {"constraint": "h200"},
        {"gpus_per_node": 4},
        {"gres": "gpu:a100:8"},
        {"memory_mib": 100_000},
        {"account": "other"},
        {"extra": ("--exclusive",)},
    ],
)
def test_nodes_of_different_kinds_are_a_heterogeneous_job(sample: dict[str, Any]) -> None:
    found = laid(sample, site())
    assert (found.het, found.first_nodes, found.faults) == (True, (0, 2), ())
    assert found.resources == NEED


def test_memory_makes_no_kind_where_nodes_are_whole() -> None:
    assert not laid({"memory_mib": 1}, site(), replace(NEED, whole_nodes=True)).het


def test_the_local_scheduler_has_equal_nodes() -> None:
    found = laid({"gpus_per_node": 2, "memory_mib": 900_000}, site(scheduler="local"))
    assert not found.het
    assert (found.resources.gpus_per_node, found.resources.memory_mib, found.resources.nodes) == (8, 900_000, 4)


def test_one_node_is_shared_if_it_holds_the_groups() -> None:
    half = replace(NEED, nodes=1, tasks_per_node=4, gpus_per_node=4, memory_mib=400_000, gres="gpu:h100:4")
    found = laid({"gpus_per_node": 3, "gres": "gpu:h100:3", "memory_mib": 100_000}, site(1), half)
    assert (found.het, found.first_nodes, found.faults) == (False, (0, 0), ())
    asked = found.resources
    assert (asked.nodes, asked.cpus_per_task, asked.gpus_per_node, asked.memory_mib) == (1, 32, 7, 500_000)
    assert asked.gres == "gpu:h100:7"
    assert laid({}, site(2), half).first_nodes == (0, 1)


def test_what_a_site_cannot_hold_is_told() -> None:
    (fault,) = laid({}, site(1), replace(NEED, nodes=1)).faults
    assert "16 GPUs of 8" in fault.message
    assert "of memory" not in fault.message
    assert fault.where == "resources.rl"
    (fault,) = laid({"nodes": 3}, site(4)).faults
    assert fault.message == "the groups need 5 nodes, more than the 4 of site here"


def test_three_groups() -> None:
    needs = [NEED, replace(NEED, nodes=1), replace(NEED, nodes=4)]
    found = lay_groups(needs, site(), where="resources.rl")
    assert (found.first_nodes, found.resources.nodes) == ((0, 2, 3), 7)
