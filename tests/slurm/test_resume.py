"""How stages come back by themselves under real Slurm, and where they stop trying: the job script's own decisions."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher import assets
from launcher.failures import first_failure
from launcher.record import read_events
from launcher.render import Place, render
from launcher.scheduler import Scheduler
from launcher.states import State
from tests.chain.conftest import GOOD
from tests.chain.probe import Chain, attempts
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ClusterUser
from tests.slurm.test_job_script import Start, start

pytestmark = pytest.mark.slurm

__all__ = ["start"]


def hosts(chain: Chain, stage: str) -> list[str]:
    """Where rank 0 of each attempt ran."""
    begun = [e for e in read_events(chain.files.events, stage=stage) if e["kind"] == "attempt_started"]
    return [event["host"] for event in begun if event["rank"] == 0]


def shown(cluster: Cluster, job_id: str, key: str) -> str:
    words = cluster.command("scontrol", "show", "job", "--oneliner", job_id).stdout.split()
    return next(word.partition("=")[2] for word in words if word.startswith(f"{key}="))


class Point(Chain):
    """The folder of one task of an array, which is submitted with the others."""

    def __init__(self, root: Path, scheduler: Scheduler, task: int) -> None:
        super().__init__(root, scheduler, {"first": [["wait"], ["net", "done"]][task - 1]}, polls=0.3)

    def submit(self) -> None:
        pass


@pytest.mark.parametrize("act", ["sick", "bus"])
def test_a_sick_node_is_left_out_of_the_next_attempt(start: Start, cluster: Cluster, act: str) -> None:
    """ "sick" says so itself, "bus" is killed by a bus error and only srun can tell."""
    chain = start({"first": [act, "done"], "second": ["done"]}, tasks_per_node=2)
    assert chain.ended("second").state is State.COMPLETED
    before, after = hosts(chain, "first")
    assert before != after
    assert chain.files.excluded("first").read_text() == f"{before}\n"
    assert shown(cluster, chain.jobs["first"], "ExcNodeList") == before


def test_what_the_user_excluded_stays_excluded(start: Start, cluster: Cluster) -> None:
    chain = start({"first": ["sick", "done"]}, extra=("--exclude=node[1-2]",))
    assert chain.ended("first").state is State.COMPLETED
    assert hosts(chain, "first") == ["node3", "node4"]
    assert shown(cluster, chain.jobs["first"], "ExcNodeList") == "node[1-2],node3"


def test_no_node_is_left_out_where_all_are_needed(start: Start) -> None:
    chain = start({"first": ["sick", "done"]}, nodes=4)
    assert chain.ended("first").state is State.COMPLETED
    assert chain.files.excluded("first").read_text() == ""


def test_crashes_in_a_row_wait_longer_and_longer(start: Start) -> None:
    chain = start({"first": ["net", "net", "done"]}, backoff_seconds=7, backoff_limit_seconds=9)
    assert chain.ended("first").state is State.COMPLETED
    times = {e["attempt"]: e["time"] for e in read_events(chain.files.events) if e["kind"] == "attempt_started"}
    assert times[2] - times[1] >= 6  # Slurm counts whole seconds
    assert times[3] - times[2] >= 8
    log = chain.files.batch_log("first").read_text()
    assert "another in 7 s" in log
    assert "another in 9 s" in log


def test_too_little_memory_ends_the_chain(start: Start) -> None:
    chain = start({"first": ["memory"], "second": ["done"]}, tasks_per_node=2)
    assert chain.ended("first").state is State.FAILED
    assert chain.ended("second").state is State.CANCELLED
    assert chain.attempts("first") == ["memory"]
    report = json.loads(next(chain.files.attempt("first", 1).glob("fatal-*.json")).read_text())
    assert (report["kind"], report["node"][:4]) == ("out-of-memory", "node")
    assert "raise resources.first.memory" in report["hint"]


def test_a_rank_that_was_killed_for_its_memory_ends_the_chain(start: Start) -> None:
    chain = start({"first": ["oom", "done"]}, tasks_per_node=2)
    assert chain.ended("first").state is State.FAILED
    assert chain.attempts("first") == ["oom"]
    assert chain.files.given_up("first").read_text() == "it ran out of memory\n"
    failure = first_failure(chain.files.attempt("first", 1), "first")
    assert failure is not None
    assert (failure.kind, failure.rank) == ("out-of-memory", 1)


def test_a_hang_is_a_crash(start: Start) -> None:
    limits = {"hang_factor": 2.0, "hang_floor_seconds": 1.0}
    chain = start({"first": ["freeze", "done"], "second": ["done"]}, nodes=2, **limits)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == ["freeze", "done"]
    failure = first_failure(chain.files.attempt("first", 1), "first")
    assert failure is not None
    assert (failure.kind, failure.rank, failure.node) == ("hang", 1, "node2")


def test_stops_that_save_nothing_are_bounded(start: Start) -> None:
    chain = start({"first": ["idle"], "second": ["done"]}, idle_attempts=2)
    assert chain.ended("first").state is State.FAILED
    assert chain.attempts("first") == ["idle", "idle"]
    assert chain.ended("second").state is State.CANCELLED
    assert chain.files.given_up("first").read_text() == "nothing new was saved in 2 attempts\n"


def test_a_preempted_rank_has_time_to_save(start: Start, cluster: Cluster) -> None:
    """GraceTime is 0: there is TERM, and KillWait (5 s) later KILL. The batch shell must not cut that short."""
    chain = start({"first": ["slow", "done"], "second": ["done"]}, nodes=4, cpus_per_task=8, partition="spare")
    chain.until(lambda: chain.attempts("first") == ["slow"])
    urgent = ("--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert cluster.command("sbatch", *urgent).returncode == 0
    assert chain.ended("second").state is State.COMPLETED
    assert chain.files.saved("first", 1).exists()
    assert not chain.files.crashed("first", 1).exists()


def test_preemption_with_grace(start: Start, cluster: Cluster) -> None:
    """TERM comes at the start of the grace time; the rank saves and the job goes back into the queue before its end."""
    assert cluster.command("scontrol", "update", "partitionname=spare", "GraceTime=30").returncode == 0
    try:
        chain = start({"first": ["slow", "done"]}, nodes=4, cpus_per_task=8, partition="spare")
        chain.until(lambda: chain.attempts("first") == ["slow"])
        urgent = ("--partition=main", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        assert cluster.command("sbatch", *urgent).returncode == 0
        assert chain.ended("first").state is State.COMPLETED
        assert chain.attempts("first") == ["slow", "done"]
        assert chain.files.saved("first", 1).exists()
        assert not chain.files.crashed("first", 1).exists()
    finally:
        cluster.command("scontrol", "update", "partitionname=spare", "GraceTime=0")


def test_only_the_failed_task_of_an_array_comes_back(tmp_path: Path, slurm: Scheduler, cluster: Cluster) -> None:
    """Two tasks of one script; the task whose id is the array's own would bring all of them back."""
    points = {task: Point(tmp_path / str(task), slurm, task) for task in (1, 2)}
    script = tmp_path / "array.sh"
    place = Place(str(points[1].files.root), array=0)
    plan = replace(points[1].plan, run_dir=str(tmp_path))
    script.write_text(render(plan, assets.folder("templates"), place)["first"])
    array = slurm.submit(script, array="1-2")
    try:
        points[2].until(lambda: points[2].attempts("first") == ["net", "done"])
        assert points[1].attempts("first") == ["wait"]
        assert shown(cluster, f"{array}_1", "JobState") == "RUNNING"
        assert shown(cluster, f"{array}_1", "Restarts") == "0"
        folders = points[2].files.batch_log("first").parent
        assert sorted(path.name for path in folders.iterdir()) == ["attempt-1", "attempt-2", "batch.log"]
        assert "attempt 1 ended with code 1; another" in (folders / "batch.log").read_text()
    finally:
        cluster.command("scancel", array)


def test_time_limit_of_slurm_before_23_02_reaches_the_ranks(start: Start, cluster: Cluster) -> None:
    chain = start({"first": ["done"]}, time_limit_minutes=7)
    chain.ended("first")
    end = next(e["value"] for e in read_events(chain.files.events) if e.get("name") == "end_time")
    assert 5 * 60 < end - time.time() < 7 * 60


CHAIN = """
[resume]
mode = "chain"
continuations = 2
backoff_seconds = 0
"""


def test_chain_instead_of_requeue(cluster: Cluster, tmp_path: Path) -> None:
    """Submit, a crash, a preempted-like kill, a stop; `status` tells of the job that counts."""
    user = ClusterUser(tmp_path, cluster)
    user.write(GOOD + CHAIN)
    files = user.submit({"baseline": ["sick", "done"], "train": ["kill", "wait", "done"]})
    ids = user.jobs(files)
    assert {len(each) for each in ids.values()} == {3}
    assert "Requeue=0" in cluster.command("scontrol", "show", "job", ids["train"][0]).stdout
    user.release(files)
    user.until(files, lambda states: attempts(files, "train") == ["kill", "wait"])
    told = {stage["name"]: stage for stage in json.loads(user.run("status", files.root.name, "--json"))["stages"]}
    assert told["train"]["job_id"] == ids["train"][1]
    assert told["train"]["state"] == "RUNNING"
    assert "rank 1 on node" in told["train"]["setback"]
    assert told["baseline"]["state"] == "COMPLETED"
    first, second = (e["host"] for e in read_events(files.events, stage="baseline") if e["kind"] == "attempt_started")
    assert first != second
    assert told["baseline"]["excluded"] == [first]
    limits = [cluster.command("scontrol", "show", "job", each).stdout for each in (ids["baseline"][2], ids["train"][2])]
    assert [" TimeLimit=00:01:00 " in limit for limit in limits] == [True, False]
    cluster.command("scancel", "--batch", "--signal=USR2", ids["train"][1])
    user.until(files, lambda states: states["evaluate"] == "COMPLETED", seconds=120)
    assert attempts(files, "train") == ["kill", "wait", "done"]
    cancelled = user.run("cancel", files.root.name).split()
    assert not set(cancelled) & set(ids["train"])
    assert user.until(files, lambda states: states["run"] not in ("RUNNING", "PENDING"))["run"] in (
        "CANCELLED",
        "COMPLETED",
    )
    ours = {job_id for each in ids.values() for job_id in each}
    # what was cancelled is completing for a moment
    user.until(files, lambda states: not ours & set(cluster.command("squeue", "-h", "-o", "%i", "--me").stdout.split()))
