"""What a function asks of a site that has accounts, partitions and GPUs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from launcher.calls import prepare_calls
from launcher.planner.call import CallRequest
from launcher.prepare import Prepared

pytestmark = pytest.mark.unit


def prepared(request: CallRequest, functions: int = 1) -> Prepared:
    return prepare_calls(
        request,
        name="call-me",
        options={},
        pickled=[b""] * functions,
        at_once=2,
        site_name="example-slurm",
        home=Path("/nonexistent"),
        environ=os.environ,
    )


def options(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]


def test_the_site_says_what_the_caller_leaves_open() -> None:
    asked = options(prepared(CallRequest(python=sys.executable)).scripts["call"])
    for option in ("account=project", "qos=normal", "partition=gpu", "cpus-per-task=1", "time=0-01:00:00", "requeue"):
        assert option in asked
    assert not [option for option in asked if option.startswith("gpus")]


def test_what_the_caller_says_goes_first_and_gpus_bring_their_share_of_the_node() -> None:
    request = CallRequest(
        nodes=2,
        tasks_per_node=4,
        gpus_per_node=4,
        time_limit=90,
        partition="gpu",
        account="mine",
        extra=("--nice=10",),
        environment="train",
    )
    ready = prepared(request)
    need = ready.plan.stages[0].resources
    assert (need.world_size, need.cpus_per_task, need.memory_mib) == (8, 12, 1900 * 1024 // 2)
    asked = options(ready.scripts["call"])
    for option in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "account=mine", "time=0-01:30:00", "nice=10"):
        assert option in asked
    assert "--container-image=nvcr.io#nvidia/pytorch:25.09-py3" in ready.scripts["call"]
    assert "NCCL_SOCKET_IFNAME=" in ready.scripts["call"]


def test_several_functions_are_one_array() -> None:
    ready = prepared(CallRequest(python=sys.executable), functions=3)
    assert list(ready.scripts) == ["call.0"]
    assert ready.placed is not None
    assert ready.placed.concurrency == 2
    folders = [plan.run_dir for plan in ready.point_plans]
    assert folders == [f"{ready.plan.run_dir}/points/0/{number}" for number in range(3)]
