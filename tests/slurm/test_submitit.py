"""submitit.AutoExecutor(cluster="swiftlaunch") on real Slurm."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit

import launcher
import launcher.submitit
from tests.python import functions
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

SITE = """\
name = "real"
description = "four nodes on this machine"
scheduler = "slurm"
runs_dir = {runs}
models_dir = "/nonexistent"
environments_dir = "/nonexistent"
[node]
count = 4
cpus = 16
memory = "16000M"
gpus = 4
[[partitions]]
name = "main"
time_limit = "1h"
[[partitions]]
name = "spare"
time_limit = "1h"
[environments]
"""


@pytest.fixture
def executor(tmp_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[submitit.AutoExecutor]:
    (tmp_path / "real.toml").write_text(SITE.format(runs=json.dumps(str(tmp_path / "runs"))))
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    executor = submitit.AutoExecutor("jobs", cluster="swiftlaunch", swiftlaunch_max_num_timeout=1)
    executor.update_parameters(timeout_min=20, mem_gb=0.25, swiftlaunch_site="./real.toml")
    yield executor
    for run in launcher.runs():
        run.cancel()


def until(condition: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def state(job: submitit.Job[Any]) -> str:
    return str(job.watcher.get_state(job.job_id, mode="force"))


def test_a_function_on_two_nodes(executor: submitit.AutoExecutor) -> None:
    executor.update_parameters(nodes=2, tasks_per_node=2, cpus_per_task=1, gpus_per_node=2, name="sums")
    job = executor.submit(functions.where_am_i)
    found = job.results()
    assert [(place["rank"], place["tasks"], place["job_id"]) for place in found] == [
        (rank, 4, job.job_id) for rank in range(4)
    ]
    until(lambda: state(job) == "COMPLETED")
    words = [sys.executable, "-m", "launcher", "runs", "--json"]
    listed = json.loads(subprocess.run(words, capture_output=True, text=True, timeout=60).stdout)
    assert [(run["name"], run["state"], run["site"]) for run in listed] == [("sums", "COMPLETED", "real")]


def test_an_array_of_eight_and_its_failure(executor: submitit.AutoExecutor, cluster: Cluster) -> None:
    executor.update_parameters(swiftlaunch_array_parallelism=4)
    jobs = executor.map_array(functions.third_fails, range(8))
    arrays = {job.job_id.partition("_")[0] for job in jobs}
    assert len(arrays) == 1
    assert [job.result() for job in jobs if job is not jobs[3]] == [0, 10, 20, 40, 50, 60, 70]
    with pytest.raises(submitit.core.utils.FailedJobError, match="ValueError: three is not allowed"):
        jobs[3].result()
    until(lambda: [state(job) for job in jobs].count("COMPLETED") == 7)
    assert state(jobs[3]) == "FAILED"


def test_cancel_one_of_an_array(executor: submitit.AutoExecutor) -> None:
    jobs = executor.map_array(functions.wait, [600, 1, 600])
    until(lambda: "waiting" in (jobs[0].stdout() or ""))
    jobs[0].cancel()
    until(lambda: state(jobs[0]) == "CANCELLED")
    assert jobs[0].done()
    assert jobs[1].result() is None
    assert state(jobs[2]) == "RUNNING"


def test_preemption_without_grace_keeps_the_state(
    executor: submitit.AutoExecutor, cluster: Cluster, tmp_path: Path
) -> None:
    executor.update_parameters(nodes=4, cpus_per_task=8, swiftlaunch_partition="spare")
    job = executor.submit(functions.Counter(), str(tmp_path / "stop"))
    until(lambda: all("counting" in (job.task(rank).stdout() or "") for rank in range(4)))
    urgent = ("--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    cluster.command("sbatch", *urgent)
    until(lambda: "counting [None, '1']" in (job.task(0).stdout() or ""))
    assert not job.done()
    (tmp_path / "stop").touch()
    assert job.results()[0] == [None, "1"]
    assert "SIGTERM, state saved" in (job.stdout() or "")


@pytest.fixture
def at_its_limit(executor: submitit.AutoExecutor, cluster: Cluster) -> Callable[..., submitit.Job[Any]]:
    """Submit a function to a job of three minutes: any of its time is near enough to its end."""

    def submit(function: Callable[..., Any], *arguments: Any) -> submitit.Job[Any]:
        executor.update_parameters(swiftlaunch_extra=["--hold"])
        job = executor.submit(function, *arguments)
        cluster.command("scontrol", "update", f"JobId={job.job_id}", "TimeLimit=3")
        cluster.command("scontrol", "release", job.job_id)
        return job

    return submit


def test_the_time_limit_may_come_as_often_as_was_said(
    at_its_limit: Callable[..., submitit.Job[Any]], cluster: Cluster, tmp_path: Path
) -> None:
    job = at_its_limit(functions.Counter(), str(tmp_path / "stop"))
    for history in ("[None]", "[None, '1']"):
        until(lambda history=history: f"counting {history}" in (job.stdout() or ""))  # type: ignore[misc]
        cluster.command("scancel", "--batch", "--signal=USR2", job.job_id)  # as Slurm does before the limit
    with pytest.raises(submitit.core.utils.FailedJobError, match="time limit came once too often"):
        job.result()
    until(lambda: state(job) == "FAILED")


def test_a_function_without_checkpoint_ends_at_its_time_limit(
    at_its_limit: Callable[..., submitit.Job[Any]], cluster: Cluster
) -> None:
    job = at_its_limit(functions.wait, 600)
    until(lambda: "waiting" in (job.stdout() or ""))
    cluster.command("scancel", "--batch", "--signal=USR2", job.job_id)
    with pytest.raises(submitit.core.utils.FailedJobError, match="it has no checkpoint"):
        job.result()
