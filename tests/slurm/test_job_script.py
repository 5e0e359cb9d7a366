"""The rendered job script under real Slurm: how attempts end, and what becomes of the chain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.scheduler import Scheduler
from launcher.states import State
from tests.chain.probe import Chain
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

Start = Callable[..., Chain]


@pytest.fixture
def start(tmp_path: Path, slurm: Scheduler, cluster: Cluster) -> Any:
    """Start a chain of probe stages; what is left of it at the end is cancelled."""
    chains: list[Chain] = []

    def start(stages: dict[str, list[str]], **resources: Any) -> Chain:
        chains.append(Chain(tmp_path / "a run", slurm, stages, polls=0.3, **resources))
        return chains[-1]

    yield start
    for chain in chains:
        cluster.command("scancel", *chain.jobs.values())


def sacct(cluster: Cluster, job_id: str) -> list[str]:
    """The states of a job's runs, oldest first."""
    answer = cluster.command("sacct", "-P", "-n", "-D", "-X", "-j", job_id, "-o", "State")
    return answer.stdout.split("\n")[:-1]


def test_chain_completes(start: Start, cluster: Cluster) -> None:
    chain = start({"first": ["done"], "second": ["done"]}, nodes=2, tasks_per_node=2, gpus_per_node=4)
    assert chain.ended("second").state is State.COMPLETED
    result = json.loads(chain.files.result("second").read_text())
    assert result["metrics"] == {"acts": "done", "world_size": 4}
    for job_id in chain.jobs.values():
        chain.until(lambda job_id=job_id: sacct(cluster, job_id) == ["COMPLETED"])  # type: ignore[misc]
    tres = cluster.command("sacct", "-P", "-n", "-X", "-j", chain.jobs["first"], "-o", "AllocTRES").stdout
    assert "gres/gpu=8" in tres
    assert len(list(chain.files.attempt("first", 1).glob("rank-*.log"))) == 4


@pytest.mark.parametrize("act", ["net", "half", "kill"])
def test_crash_is_tried_again_and_the_chain_goes_on(start: Start, cluster: Cluster, act: str) -> None:
    chain = start({"first": [act, "done"], "second": ["done"]}, tasks_per_node=2)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == [act, "done"]
    assert chain.files.crashed("first", 1).exists()
    chain.until(lambda: chain.job("first").restarts == 1)
    assert sacct(cluster, chain.jobs["first"]) == ["REQUEUED", "COMPLETED"]


def test_fault_of_the_recipe_ends_the_chain(start: Start) -> None:
    chain = start({"first": ["wrong"], "second": ["done"], "third": ["done"]})
    first = chain.ended("first")
    chain.until(lambda: chain.job("first").exit_code == 78)  # accounting knows it a moment later
    assert first.state is State.FAILED
    assert chain.ended("third").state is chain.ended("second").state is State.CANCELLED
    assert chain.attempts("first") == ["wrong"]


def test_requeue_by_an_operator_is_no_crash(start: Start, cluster: Cluster) -> None:
    chain = start({"first": ["wait", "done"], "second": ["done"]}, tasks_per_node=2)
    chain.until(lambda: chain.attempts("first") == ["wait"])
    assert cluster.command("scontrol", "requeue", chain.jobs["first"]).returncode == 0
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == ["wait", "done"]
    assert not chain.files.crashed("first", 1).exists()


def test_asked_to_stop_is_requeued_without_counting_as_a_crash(start: Start, cluster: Cluster) -> None:
    """USR2 to the batch shell, as --signal=B:USR2 sends it before the time limit."""
    chain = start({"first": ["wait", "done"], "second": ["done"]}, tasks_per_node=2)
    chain.until(lambda: chain.attempts("first") == ["wait"])
    assert cluster.command("scancel", "--batch", "--signal=USR2", chain.jobs["first"]).returncode == 0
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == ["wait", "done"]
    assert not chain.files.crashed("first", 1).exists()


def test_preempted_job_comes_back(start: Start, cluster: Cluster) -> None:
    chain = start({"first": ["wait", "done"], "second": ["done"]}, nodes=4, cpus_per_task=8, partition="spare")
    chain.until(lambda: chain.attempts("first") == ["wait"])
    urgent = ("--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert cluster.command("sbatch", *urgent).returncode == 0
    assert chain.ended("second").state is State.COMPLETED
    assert sacct(cluster, chain.jobs["first"]) == ["PREEMPTED", "COMPLETED"]
    assert not chain.files.crashed("first", 1).exists()


def test_preempted_before_a_rank_could_catch_it(start: Start, cluster: Cluster) -> None:
    """Slurm tells the steps first, the batch shell perhaps: that this is no crash, the script has to find out."""
    stages = {"first": ["wait", "done"], "second": ["done"]}
    chain = start(stages, nodes=4, cpus_per_task=8, partition="spare", extra=("--hold",))
    slow = "import os, time\nif os.environ.get('SLURM_PROCID') == '1' and os.environ['SWIFTLAUNCH_ATTEMPT'] == '1':\n"
    (chain.files.code / "sitecustomize.py").write_text(f"{slow}    time.sleep(30)\n")
    assert cluster.command("scontrol", "release", *chain.jobs.values()).returncode == 0
    chain.until(lambda: chain.attempts("first") == ["wait"])
    urgent = ("--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert cluster.command("sbatch", *urgent).returncode == 0
    assert chain.ended("second").state is State.COMPLETED
    assert sacct(cluster, chain.jobs["first"]) == ["PREEMPTED", "COMPLETED"]
    assert "task 1: Terminated" in chain.files.attempt("first", 1).joinpath("step.log").read_text()
    assert not chain.files.crashed("first", 1).exists()


def test_time_limit_without_a_warning(start: Start, cluster: Cluster) -> None:
    chain = start({"first": ["wait", "done"], "second": ["done"]})
    chain.until(lambda: chain.attempts("first") == ["wait"])
    assert cluster.command("scontrol", "update", f"jobid={chain.jobs['first']}", "EndTime=now+1").returncode == 0
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == ["wait", "done"]


@pytest.mark.parametrize("act", ["wait", "hang"])
def test_scancel_is_not_requeued(start: Start, cluster: Cluster, act: str) -> None:
    """By somebody who does not know of `swiftlaunch cancel`; whether the worker saves its state or not."""
    chain = start({"first": [act], "second": ["done"]}, tasks_per_node=2)
    chain.until(lambda: chain.attempts("first") == [act])
    chain.scheduler.cancel([chain.jobs["first"]])
    assert chain.ended("first").state is State.CANCELLED
    assert chain.ended("second").state is State.CANCELLED
    chain.until(lambda: cluster.command("squeue", "-h", "-j", chain.jobs["first"]).stdout == "")
    assert chain.attempts("first") == [act]
    assert sacct(cluster, chain.jobs["first"])[0].startswith("CANCELLED")


def test_node_down(start: Start, cluster: Cluster) -> None:
    chain = start({"first": ["wait", "done"], "second": ["done"]}, tasks_per_node=2)
    chain.until(lambda: chain.attempts("first") == ["wait"])
    node = chain.job("first").nodes
    cluster.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        assert chain.ended("second").state is State.COMPLETED
    finally:
        cluster.command("scontrol", "update", f"nodename={node}", "state=resume")
    assert chain.attempts("first") == ["wait", "done"]
    assert sacct(cluster, chain.jobs["first"]) == ["NODE_FAIL", "COMPLETED"]
    assert not chain.files.crashed("first", 1).exists()
