"""What Slurm's commands print, for every release of `recorded/` (its README says which is recorded, which written)."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.scheduler.reasons import in_words
from launcher.scheduler.slurm import limits
from launcher.scheduler.slurm.text import merge, parse_sacct, parse_squeue, parse_test_only, pick
from launcher.scheduler.slurm.usage import parse_use
from launcher.states import State

pytestmark = pytest.mark.unit

RECORDED = Path(__file__).with_name("recorded")
RELEASES = sorted(path.name for path in RECORDED.iterdir() if path.is_dir())
LATER = [release for release in RELEASES if release != "22.05"]


def text(release: str, name: str) -> str:
    return (RECORDED / release / f"{name}.txt").read_text()


@pytest.mark.parametrize("release", RELEASES)
def test_squeue_and_sacct(release: str) -> None:
    queue = {job.job_id: job for job in parse_squeue(text(release, "squeue"))}
    assert (queue["37"].state, queue["37+1"].state) == (State.RUNNING, State.RUNNING)  # a heterogeneous job
    assert (queue["36_4"].state, queue["36_4"].reason) == (State.PENDING, "JobArrayTaskLimit")
    assert queue["47"].reason == "Resources"
    assert queue["47"].started is None
    assert queue["47"].expected is not None
    assert queue["41"].comment == "swiftlaunch:run:slow"
    ended = {job.job_id: job for job in parse_sacct(text(release, "sacct"))}
    assert (ended["39"].state, ended["41"].state) == (State.CANCELLED, State.TIMEOUT)  # "CANCELLED by 0"
    assert (ended["40"].state, ended["40"].restarts) == (State.COMPLETED, 1)  # requeued: two lines
    assert (ended["36_1"].state, ended["36_1"].exit_code) == (State.FAILED, 1)
    known = merge(queue.values(), ended.values())
    assert pick("37+1", known).state is State.RUNNING
    assert pick("36", known).state is State.RUNNING
    assert pick("40", known).restarts == 1


def test_early_accounting_of_the_real_release() -> None:
    early = {job.job_id: job for job in parse_sacct(text("22.05", "sacct-early"))}
    assert (early["40"].state, early["40"].restarts, early["40"].reason) == (State.PENDING, 1, "BeginTime")
    assert early["37"].comment == ""  # it learns it at the end


@pytest.mark.parametrize("release", LATER)
def test_lists_of_tasks_and_rare_states(release: str) -> None:
    queue = {job.job_id: job for job in parse_squeue(text(release, "squeue"))}
    assert (queue["54"].state, queue["55"].state) == (State.PENDING, State.RUNNING)
    assert "UnavailableNodes:node[3-4]" in in_words(queue["52"].reason)
    ended = {job.job_id: job for job in parse_sacct(text(release, "sacct"))}
    assert {f"12_{task}" for task in range(3, 8)} <= set(ended)
    assert (ended["60"].state, ended["60"].signal) == (State.OUT_OF_MEMORY, 125)
    assert (ended["61"].state, ended["61"].restarts) == (State.COMPLETED, 2)
    assert (ended["62"].state, ended["63"].state) == (State.TIMEOUT, State.NODE_FAIL)


@pytest.mark.parametrize(
    ("release", "job_id", "state"),
    [
        ("24.11", "57", State.RUNNING),
        ("25.05", "56", State.PENDING),
        ("25.05", "57", State.PENDING),
        ("25.11", "56", State.PENDING),
        ("26.05", "56", State.UNKNOWN),
    ],
)
def test_states_that_came_later(release: str, job_id: str, state: State) -> None:
    job = pick(job_id, parse_squeue(text(release, "squeue")))
    assert job.state is state
    assert not job.state.terminal
    assert in_words(job.reason) or not job.reason


@pytest.mark.parametrize("release", RELEASES)
def test_what_was_used(release: str) -> None:
    runs = parse_use(text(release, "sacct-steps"))
    train = next(run for run in runs if run.job_id == "35")
    assert (train.nodes, train.cpus, train.gpus, train.memory_mib, train.limit_seconds) == (2, 8, 2, 500, 600)
    assert train.cpu_seconds == pytest.approx(1.942)
    assert train.peak_mib == pytest.approx(2 * 74688 / 1024, abs=1)  # two tasks on each node
    again = [run for run in runs if run.job_id == "40"]
    assert [run.state for run in again] == [State.REQUEUED, State.COMPLETED]
    assert [run.seconds for run in again] == [4, 3]
    assert all(run.peak_mib is None for run in again)  # too short to be sampled
    assert not any("[" in run.job_id for run in runs)


@pytest.mark.parametrize("release", LATER)
def test_what_was_used_with_gpus_and_an_extern_step(release: str) -> None:
    runs = {run.job_id: run for run in parse_use(text(release, "sacct-steps"))}
    large = runs["70"]
    assert (large.gpus, large.memory_mib, large.cpu_seconds) == (8, 100 * 1024, 22800)
    assert large.peak_mib == pytest.approx(4 * 11.25 * 1024 + 20312 / 1024 + 1, abs=2)
    assert (runs["71"].state, runs["71"].peak_mib) == (State.OUT_OF_MEMORY, 4096)


@pytest.mark.parametrize("release", RELEASES)
def test_only_tests(release: str) -> None:
    lines = text(release, "test-only").splitlines()
    taken = parse_test_only(0, lines[0])
    assert taken.start is not None
    assert (taken.nodes, taken.refusal) == ("node1", "")
    refusals = [parse_test_only(1, line).refusal for line in lines[1:]]
    assert refusals[0] == "invalid partition specified: nope"
    assert "Requested node configuration is not available" in refusals
    assert parse_test_only(1, "\n".join(lines[1:3])).refusal == (
        "invalid partition specified: nope; Invalid partition name specified"
    )


@pytest.mark.parametrize("release", RELEASES)
def test_limits(release: str) -> None:
    associations = limits.parse_associations(text(release, "associations"))
    mine = next(one for one in associations if one.user and one.account == "lab")
    assert mine.qos == ("long", "normal")
    assert (mine.limits.minutes, mine.limits.each, mine.limits.queued) == (120, {"cpu": 20, "node": 3}, 4)
    qos = limits.parse_qos(text(release, "qos"))
    assert qos["long"].minutes == 3 * 1440
    assert qos["long"].user == {"gres/gpu": 4}
    assert {"DenyOnLimit", "PartitionTimeLimit"} <= qos["long"].flags
    partitions = limits.parse_partitions(text(release, "partitions"))
    assert (partitions["main"].default, partitions["spare"].default) == (True, False)
    expected = (None, None) if release == "22.05" else (1440, 2)
    assert (partitions["main"].minutes, partitions["main"].nodes) == expected
    assert limits.parse_config(text(release, "config"))["AccountingStorageEnforce"] == "associations,limits,qos"
    assert limits.fair_share(text(release, "shares"), "root", "lab").startswith("fair share 1.00 of 1 in account lab")
    assert limits.fair_share(text(release, "shares"), "nobody", "lab") == ""


@pytest.mark.parametrize("release", RELEASES)
def test_ping(release: str) -> None:
    assert " UP" in text(release, "ping")  # what the client looks for; a backup that is up will do


def need(**given: object) -> limits.Need:
    base = {"minutes": 60, "resources": {"cpu": 4, "node": 1, "mem": 4096}, "partition": "main", "account": "lab"}
    return limits.Need("train", "train", **{**base, **given})  # type: ignore[arg-type]


def messages(asked: limits.Need, release: str = "23.02") -> list[str]:
    associations = limits.parse_associations(text(release, "associations"))
    qos = limits.parse_qos(text(release, "qos"))
    partition = limits.parse_partitions(text(release, "partitions"))["main"]
    counting = limits.levels(asked, "lab", associations, qos, partition)
    return [one.message for one in limits.broken(asked, counting, partition)]


def test_what_breaks_a_limit() -> None:
    assert messages(need()) == []
    assert messages(need(minutes=121)) == ["asks for 2 h 01 min; root in account lab gives a job 2 h 00 min"]
    assert messages(need(resources={"cpu": 21, "node": 1})) == [
        "asks for 21 CPUs; root in account lab allows one job 20 CPUs at a time"
    ]
    assert messages(need(resources={"cpu": 4, "node": 1, "gres/gpu": 9})) == [
        "asks for 9 GPUs; account lab allows all jobs together 8 GPUs at a time"
    ]
    assert messages(need(resources={"cpu": 4, "node": 3})) == ["asks for 3 nodes; partition main gives a job 2 nodes"]
    # the QOS comes first, and may go beyond the partition's time
    assert messages(need(minutes=2 * 1440, qos="long")) == []
    assert messages(need(minutes=4 * 1440, qos="long")) == ["asks for 96 h 00 min; QOS long gives a job 72 h 00 min"]
    assert messages(need(resources={"cpu": 4, "node": 1, "gres/gpu": 5}, qos="long")) == [
        "asks for 5 GPUs; QOS long allows all jobs of a user 4 GPUs at a time"
    ]


def test_sizes_of_limits() -> None:
    assert limits.parse_tres("cpu=20,mem=500G,gres/gpu:a100=4,node=-1,billing=") == {
        "cpu": 20,
        "mem": 512000,
        "gres/gpu:a100": 4,
    }
    assert limits.parse_tres("") == {}


def test_a_run_of_less_than_a_second_counts() -> None:
    lines = [
        "7|REQUEUED|4|00:00.100|1|1|||cpu=1,mem=100M|10",
        "7|COMPLETED|0|00:00:00|1|1|||cpu=1,mem=100M|10",
        "8|CANCELLED by 0|0|00:00:00|1|1||||10",
    ]
    assert [(run.job_id, run.seconds) for run in parse_use("\n".join(lines))] == [("7", 4.0), ("7", 0.0)]
