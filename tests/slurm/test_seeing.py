"""What a user sees of a run on real Slurm: why it waits, what Slurm would refuse, what was used, logs of all ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.scheduler import Scheduler
from launcher.states import State
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ClusterUser
from tests.slurm.test_client import script

pytestmark = pytest.mark.slurm

RECIPE = ("recipe.toml", "--site", "./real.toml")
SHORT = ("--set", "resources.default.time_limit=30m")


@pytest.fixture
def limited(with_limits: Cluster) -> Iterator[Cluster]:
    """Its limits are taken away afterwards."""
    yield with_limits
    free = ("MaxWall=-1", "MaxTRESPerJob=cpu=-1", "MaxSubmitJobs=-1", "GrpTRES=gres/gpu=-1")
    with_limits.command("sacctmgr", "-i", "modify", "account", "lab", "set", *free)


def refused(user: ClusterUser, *words: str) -> str:
    """What `submit` says; it must have left nothing."""
    before = user.everything()
    finished = user.swiftlaunch("submit", *RECIPE, *words)
    assert finished.returncode == 2, finished.stderr
    assert "Traceback" not in finished.stderr
    assert not user.cluster.command("squeue", "-h", "--me").stdout
    assert not any((user.root / "runs").glob("*"))
    assert {path for path in user.everything() - before if "registry" not in path and "home" not in path} <= {"runs"}
    return finished.stderr


def test_what_slurm_refuses_is_refused_before_anything_is_submitted(limited: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, limited)
    said = refused(user, *SHORT, "--set", "resources.serve.account=nobody", "--set", "resources.quantize.qos=none")
    assert re.search("error: stage serve: Slurm refuses it: Invalid account", said)
    assert re.search("error: stage quantize: Slurm refuses it: Invalid qos", said)
    assert "set resources.serve.account" in said

    modify = ("sacctmgr", "-i", "modify", "account", "lab", "set")
    limited.command(*modify, "MaxWall=20", "MaxTRESPerJob=cpu=2", "MaxSubmitJobs=3")
    said = refused(user, *SHORT)
    assert re.search("stage train: asks for 30 min 00 s; .* in account lab gives a job 20 min 00 s", said)
    assert "lower resources.train.time_limit" in said
    assert "allows one job 2 CPUs at a time" in said
    assert "allows 3 jobs in the queue; you have 0, and this run adds 7" in said
    # a QOS with a limit of its own goes before the account's
    limited.command(*modify, "MaxTRESPerJob=cpu=-1", "MaxSubmitJobs=-1")
    planned = user.run("plan", *RECIPE, *SHORT, "--set", "resources.default.qos=long")
    assert "submit would refuse" not in planned
    assert re.search("Slurm would start baseline and train now", planned)
    assert re.search("fair share .* in account lab", planned)


def test_a_partition_over_its_limit_is_refused(limited: Cluster, tmp_path: Path) -> None:
    limited.command("scontrol", "update", "partitionname=main", "MaxTime=10")
    try:
        said = refused(ClusterUser(tmp_path, limited), *SHORT)
    finally:
        limited.command("scontrol", "update", "partitionname=main", "MaxTime=UNLIMITED")
    assert "stage train: asks for 30 min 00 s; partition main gives a job 10 min 00 s" in said


def test_nodes_that_are_away_are_waited_for(limited: Cluster, tmp_path: Path) -> None:
    """In a maintenance --test-only calls every job impossible; sbatch takes it all the same."""
    nodes = "nodename=node[1-4]"
    limited.command("scontrol", "update", nodes, "state=drain", "reason=maintenance")
    try:
        user = ClusterUser(tmp_path, limited)
        user.submit({})
        assert "4 of 4 nodes are down, drained" in user.run("plan", *RECIPE)
        user.run("cancel", "latest")
    finally:
        limited.command("scontrol", "update", nodes, "state=resume")


def test_status_says_why_and_when(cluster: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, cluster)
    files = user.submit({})
    waits = {stage["name"]: stage["why"] for stage in json.loads(user.run("status", "latest", "--json"))["stages"]}
    assert waits["train"].startswith("is held")
    blocker = cluster.command(
        "sbatch", "--parsable", "-N4", "--exclusive", "--time=7", "--wrap=sleep 300"
    ).stdout.strip()
    try:
        user.release(files)
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            stages = {stage["name"]: stage for stage in json.loads(user.run("status", "latest", "--json"))["stages"]}
            if stages["baseline"]["expected"] and stages["baseline"]["reason"]:
                break
        assert stages["baseline"]["reason"] in ("Resources", "Priority")
        assert stages["export"]["why"] == "waits for train"
        assert 0 < stages["baseline"]["expected"] - time.time() <= 8 * 60
        assert re.search(r"baseline +PENDING +.*; may start at \d\d:\d\d", user.run("status", "latest"))
    finally:
        cluster.command("scancel", blocker)
        user.run("cancel", "latest")


def test_a_failed_stage_is_named_by_those_cancelled_for_it(cluster: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, cluster)
    files = user.submit({"export": ["wrong", "done"]})
    user.release(files)
    user.until(files, lambda states: states["run"] == "FAILED" and states["serve"] == "CANCELLED")
    shown = user.run("status", "latest")
    for stage in ("evaluate", "quantize", "serve"):
        assert re.search(rf"{stage} +CANCELLED +.*export failed", shown)
    assert user.run("resume", "latest").split() == ["export", "evaluate", "quantize", "evaluate-quantized", "serve"]
    user.release(files)
    user.until(files, lambda states: states["run"] == "COMPLETED")


def test_usage_adds_up_all_runs(with_limits: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, with_limits)
    files = user.submit({"train": ["wait", "done"]}, *SHORT)
    user.release(files)
    job_id = user.jobs(files)["train"][-1]
    user.until(
        files, lambda states: states["train"] == "RUNNING" and (files.attempt("train", 1) / "rank-1.log").exists()
    )
    time.sleep(3)
    with_limits.command("scontrol", "requeue", job_id)
    user.until(files, lambda states: states["run"] == "COMPLETED", seconds=150)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # accounting lags behind
        found = json.loads(user.run("usage", "latest", "--json"))
        stages = {stage["name"]: stage for stage in found["stages"]}
        if len(stages) == 7 and stages["train"]["runs"] == 2:
            break
    train = stages["train"]
    assert train["runs"] == 2
    assert train["cut_seconds"] >= 2
    assert train["seconds"] >= train["cut_seconds"]  # the second run may take less than a second
    assert train["peak_mib"] is None or 10 < train["peak_mib"] < 2000
    assert train["needs"]["time_limit"] == 10
    assert "[resources.train]" in found["recipe"]
    shown = user.run("usage", "latest")
    assert "next time" in shown
    assert re.search("train +COMPLETED +2 ", shown)


def test_usage_without_accounting(without_accounting: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, without_accounting)
    user.submit({})
    finished = user.swiftlaunch("usage", "latest")
    user.run("cancel", "latest")
    assert (finished.returncode, finished.stdout) == (0, "")
    assert "no accounting" in finished.stderr


def until(slurm: Scheduler, ids: list[str], wanted: list[State], seconds: float = 60) -> bool:
    """Whether these jobs come to these states: accounting lags behind."""
    deadline = time.monotonic() + seconds
    while (states := [job.state for job in slurm.jobs(ids).values()]) != wanted:
        assert time.monotonic() < deadline, states
        time.sleep(0.2)
    return True


def test_array_tasks_and_components_are_cancelled_alone(slurm: Scheduler, cluster: Cluster, tmp_path: Path) -> None:
    array = slurm.submit(script(tmp_path, "--hold"), array="0-3")
    slurm.cancel([f"{array}_1", f"{array}_2"])
    # Slurm forgets at once what it cancels of an array that waits: no squeue and no sacct shows these two again
    wanted = [State.PENDING, State.UNKNOWN, State.UNKNOWN, State.PENDING]
    assert until(slurm, [f"{array}_{task}" for task in range(4)], wanted)
    slurm.cancel([array])
    assert until(slurm, [array], [State.CANCELLED])
    het = tmp_path / "het.sh"
    head = "#!/bin/bash\n#SBATCH -n1 --output=/dev/null --time=5\n#SBATCH hetjob\n#SBATCH -n1\n"
    het.write_text(f"{head}srun --het-group=0,1 sleep 100\n")
    leader = slurm.submit(het)
    part = f"{leader}+1"
    assert until(slurm, [leader, part], [State.RUNNING, State.RUNNING])
    slurm.cancel([leader])
    assert until(slurm, [leader, part], [State.CANCELLED, State.CANCELLED])


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "is dead"])
def test_without_a_controller_commands_say_whose_fault_it_is(number: int, cluster: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, cluster)
    files = user.submit({})
    pid = cluster.pid("slurmctld")
    os.kill(pid, number)
    try:
        for words in (("status", "latest"), ("runs",), ("cancel", "latest"), ("submit", *RECIPE)):
            finished = user.swiftlaunch(*words)
            assert finished.returncode == 1, (words, finished.stderr)
            assert "controller does not answer `scontrol ping`" in " ".join((finished.stdout + finished.stderr).split())
            assert "Traceback" not in finished.stderr
        planned = user.swiftlaunch("plan", *RECIPE)
        assert planned.returncode == 0
        assert "Slurm was not asked" in planned.stdout
    finally:
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        else:
            cluster.stop("slurmctld")
            cluster.start("slurmctld")
    user.run("cancel", files.root.name)
    assert list((user.root / "runs").glob("*")) == [files.root]
