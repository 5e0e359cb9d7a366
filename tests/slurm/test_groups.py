"""Groups of ranks on real Slurm: one allocation carved into job steps, and a heterogeneous job."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.record import read_json
from launcher.scheduler import Scheduler
from launcher.states import State
from tests.groups.together import Together, group, site, staged
from tests.slurm.cluster import Cluster
from tests.train.conftest import train_python

pytestmark = pytest.mark.slurm

Start = Callable[..., Together]
CARVED: dict[str, Any] = {}
HET: dict[str, Any] = {"memory_mib": 300}  # another kind of node than train's


@pytest.fixture
def start(tmp_path: Path, slurm: Scheduler, cluster: Cluster) -> Any:
    runs: list[Together] = []

    def start(acts: dict[str, str], *, train: Any = None, sample: Any = None, **both: Any) -> Together:
        groups = [group("train", **both, **(train or {})), group("sample", **both, **(sample or {}))]
        runs.append(Together(tmp_path / "a run", slurm, staged(groups, site("slurm")), acts, 0.3))
        return runs[-1]

    yield start
    for run in runs:
        cluster.command("scancel", *run.jobs.values())


def nodes(run: Together, name: str, attempt: int = 1) -> list[str]:
    return [event["node"] for event in run.began(name, attempt)]


@pytest.mark.e2e
@pytest.mark.parametrize("sample", [CARVED, HET])
def test_two_gloo_worlds_exchange_tensors_and_come_back_after_preemption(
    start: Start, cluster: Cluster, sample: dict[str, Any]
) -> None:
    """Preempting the nodes of one component of a heterogeneous job restarts all of it."""
    run = start(
        {"train.1.1": "wait"}, sample=sample, torch=True, python=train_python(), partition="spare", cpus_per_task=8
    )
    assert run.plan.stage("rl").het == bool(sample)
    meeting = run.files.events / "rl.1.train-0.jsonl"
    run.until(lambda: meeting.exists() and "exchanged" in meeting.read_text(), 120)
    assert len({*nodes(run, "train"), *nodes(run, "sample")}) == 4
    urgent = ("--partition=main", f"--nodelist={nodes(run, 'sample')[1]}", "--exclusive", "--output=/dev/null")
    assert cluster.command("sbatch", *urgent, "--wrap=sleep 1").returncode == 0
    assert run.ended("rl").state is State.COMPLETED
    # each sampler summed its vector; its world counted two; train's world of two added the sums up
    assert run.metrics == {"total": 13.0, "ranks": 2.0, "answers": [[6.0, 2.0], [7.0, 2.0]], "start": 1}
    assert len(run.began("train", 2)) == len(run.began("sample", 2)) == 2
    assert not run.files.crashed("rl", 1).exists()
    assert [e["outcome"] for e in run.ended_with("train")] == ["requeued", "requeued"]
    tokens = [
        {json.loads(path.read_text())["token"] for path in run.files.rendezvous("rl", attempt).iterdir()}
        for attempt in (1, 2)
    ]
    assert len(tokens[0]) == len(tokens[1]) == 4
    assert not tokens[0] & tokens[1]
    answer = cluster.command("sacct", "-P", "-n", "-D", "-X", "-j", run.jobs["rl"], "-o", "JobID,State")
    states = dict.fromkeys(line.split("|")[1] for line in answer.stdout.splitlines())
    assert list(states) == ["PREEMPTED", "COMPLETED"]


def test_gpus_and_cores_of_each_group(start: Start, cluster: Cluster) -> None:
    """Nodes of another kind for each, in one heterogeneous job: train has GPUs, the samplers have none."""
    train = {"nodes": 1, "tasks_per_node": 2, "cpus_per_task": 3, "gpus_per_node": 4}
    run = start({}, train=train, sample={"cpus_per_task": 2})
    assert run.ended("rl").state is State.COMPLETED
    assert [e["gpus"] for e in run.began("train")] == ["0,1,2,3", "0,1,2,3"]
    assert [e["gpus"] for e in run.began("sample")] == ["", ""]
    assert [e["world"] for e in [*run.began("train"), *run.began("sample")]] == [2, 2, 2, 2]
    asked = ("sacct", "-P", "-n", "-X", "-j", run.jobs["rl"], "-o", "JobID,AllocTRES")
    deadline = time.monotonic() + 30
    while len(answer := cluster.command(*asked).stdout.splitlines()) < 2:  # accounting lags behind
        assert time.monotonic() < deadline, answer
        time.sleep(0.5)
    assert "cpu=6" in answer[0]
    assert "gres/gpu=4" in answer[0]
    assert "cpu=4" in answer[1]
    assert "gpu" not in answer[1]


def test_groups_share_the_only_node(start: Start, tmp_path: Path, slurm: Scheduler, cluster: Cluster) -> None:
    one = {"nodes": 1, "gpus_per_node": 2, "cpus_per_task": 2}
    groups = [group("train", **one, tasks_per_node=2), group("sample", **one)]
    run = Together(tmp_path / "a run", slurm, staged(groups, site("slurm", nodes=1)), {}, 0.3)
    assert run.ended("rl").state is State.COMPLETED
    assert nodes(run, "train") == nodes(run, "sample") * 2
    gpus = [run.began("train")[0]["gpus"], run.began("sample")[0]["gpus"]]
    assert sorted(",".join(gpus).split(",")) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("sample", [CARVED, HET])
def test_a_sampler_that_crashes_is_started_again(start: Start, sample: dict[str, Any]) -> None:
    run = start({"sample.1.1": "crash", "train.1.1": "late"}, sample={**sample, "essential": False, "max_restarts": 1})
    assert run.ended("rl").state is State.COMPLETED
    assert run.metrics["start"] == 2
    assert len(run.began("train")) == 2
    assert "group sample is started again (1 of 1)" in run.batch_log


def test_an_essential_group_that_crashes_ends_the_attempt(start: Start) -> None:
    run = start({"sample.1.1": "crash", "train.1.1": "wait"})
    assert run.ended("rl").state is State.COMPLETED
    assert run.files.crashed("rl", 1).exists()
    assert [e["outcome"] for e in run.ended_with("train")] == ["requeued", "requeued"]
    assert run.metrics["start"] == 1


@pytest.mark.parametrize("sample", [CARVED, HET])
def test_who_never_comes_is_named_with_its_node(start: Start, cluster: Cluster, sample: dict[str, Any]) -> None:
    run = start({f"sample.{attempt}.1": "absent" for attempt in (1, 2, 3)}, sample=sample, timeout_seconds=2.0)
    failure = run.files.failure("rl", 1, 0, fatal=False, group="train")
    run.until(failure.exists)
    absent = nodes(run, "sample")[1]
    assert f"waited 2 s for samples of group sample, rank 1 ({absent})" in read_json(failure)["error"]


def test_a_heterogeneous_job_is_one_job(start: Start, slurm: Scheduler) -> None:
    run = start({"train.1.1": "wait"}, sample=HET)
    run.until(lambda: len(run.began("train")) == 2)
    comment = "swiftlaunch:pair-1:rl"
    assert [(job.job_id, job.state) for job in slurm.find(comment)][-1:] == [(run.jobs["rl"], State.RUNNING)]
    slurm.cancel([run.jobs["rl"]])
    assert run.ended("rl").state is State.CANCELLED
    assert len(run.began("train", 2)) == 0
