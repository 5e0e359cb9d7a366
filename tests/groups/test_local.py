"""Groups of ranks under the local scheduler: worlds of their own, one rendezvous, and how they end each other."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import UserError
from launcher.scheduler import open_scheduler
from launcher.scheduler.base import Machine
from launcher.standing import failure_report
from launcher.states import State
from launcher.view.logs import Source, known_group
from tests.groups.together import Together, group, site, staged

pytestmark = pytest.mark.local

Start = Callable[..., Together]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start(
        acts: dict[str, str], *, nodes: int = 4, gpus: int = 4, train: Any = None, sample: Any = None
    ) -> Together:
        machine = Machine(nodes=nodes, cpus=16, memory_mib=16000, gpus=gpus)
        scheduler = open_scheduler("local", state_dir=tmp_path / "state", machine=machine)
        groups = [group("train", **(train or {})), group("sample", **(sample or {}))]
        stage = staged(groups, site("local", nodes=nodes, gpus=gpus))
        return Together(tmp_path / "a run [1]", scheduler, stage, acts, 0.1)

    return start


def test_each_group_has_nodes_and_a_world_of_its_own(start: Start) -> None:
    run = start({}, train={"tasks_per_node": 2, "gpus_per_node": 2, "memory_mib": 100}, sample={"memory_mib": 900})
    assert run.ended("rl").state is State.COMPLETED
    assert run.metrics == {"total": 13.0, "ranks": 1.0, "answers": [[6.0, 1.0], [7.0, 1.0]], "start": 1}
    train, sample = run.began("train"), run.began("sample")
    assert [(e["node"], e["world"]) for e in train] == [("local1", 4), ("local1", 4), ("local2", 4), ("local2", 4)]
    assert [(e["node"], e["world"]) for e in sample] == [("local3", 2), ("local4", 2)]
    assert {e["variable"] for e in train} == {"train's $own"}
    assert {e["variable"] for e in sample} == {"sample's $own"}
    for name, ranks in (("train", 4), ("sample", 2)):
        logs = run.files.ranks("rl", 1, name).glob("rank-*.log")
        assert sorted(path.name for path in logs) == [f"rank-{rank}.log" for rank in range(ranks)]
        chosen = known_group(run.plan, "rl", name)
        assert Source(run.files, "rl", rank=1, group=chosen).path() == run.files.ranks("rl", 1, name) / "rank-1.log"
    assert known_group(run.plan, "rl", "") == "train"
    with pytest.raises(UserError, match="no group 'learn'"):
        known_group(run.plan, "rl", "learn")
    assert [e["error"] for e in run.ended_with("sample")] == ["SIGUSR2", "SIGUSR2"]  # told when train was done


def test_groups_share_the_one_node_of_a_workstation(start: Start) -> None:
    one = {"nodes": 1, "gpus_per_node": 2}
    run = start({}, nodes=1, train={**one, "tasks_per_node": 2}, sample=one)
    assert run.ended("rl").state is State.COMPLETED
    train, sample = run.began("train"), run.began("sample")
    assert [(e["node"], e["world"]) for e in [*train, *sample]] == [("local1", 2), ("local1", 2), ("local1", 1)]
    gpus = [train[0]["gpus"], sample[0]["gpus"]]
    assert sorted(",".join(gpus).split(",")) == ["0", "1", "2", "3"]


def test_tokens_are_kept_from_other_users_and_from_logs(start: Start) -> None:
    run = start({})
    assert run.ended("rl").state is State.COMPLETED
    announced = list(run.files.rendezvous("rl", 1).glob("samples.*"))
    assert len(announced) == 2
    tokens = [json.loads(path.read_text())["token"] for path in announced]
    assert len({*tokens}) == 2
    for path in announced:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = [path for folder in ("logs", "events", "scripts") for path in (run.files.root / folder).rglob("*")]
    for path in (path for path in told if path.is_file() and path.parent.name != "rendezvous"):
        assert not any(token in path.read_text() for token in tokens), path


def test_a_sampler_that_crashes_is_started_again(start: Start) -> None:
    sample = {"essential": False, "max_restarts": 1}
    run = start({"sample.1.1": "crash", "train.1.1": "late"}, sample=sample)
    assert run.ended("rl").state is State.COMPLETED
    assert run.metrics["start"] == 2
    assert [(e["rank"], e["start"]) for e in run.began("sample")] == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert len(run.began("train")) == 2
    assert run.attempts("rl") == ["work"]
    assert "group sample is started again (1 of 1)" in run.batch_log


def test_a_sampler_that_hung_is_not_taken_for_hung_again(start: Start) -> None:
    sample = {"essential": False, "max_restarts": 1}
    run = start({"sample.1.1": "hung", "train.1.1": "late"}, sample=sample)
    assert run.ended("rl").state is State.COMPLETED
    assert run.metrics["start"] == 2
    assert not list(run.files.ranks("rl", 1, "sample").glob("hang*"))


@pytest.mark.parametrize(("act", "restarts", "starts"), [("net", 1, 2), ("wrong", 5, 1)])
def test_the_run_goes_on_without_samplers(start: Start, act: str, restarts: int, starts: int) -> None:
    """When their restarts are used up; or at once, where another start would end the same way."""
    acts = {"sample.1.1": act, "sample.1.2": act, "train.1.1": "alone"}
    run = start(acts, sample={"essential": False, "max_restarts": restarts})
    run.until(lambda: "the others go on without group sample" in run.batch_log)
    assert {e["start"] for e in run.began("sample")} == set(range(1, starts + 1))
    (run.files.stage("rl") / "go").touch()
    assert run.ended("rl").state is State.COMPLETED
    assert run.metrics["ranks"] == 1.0


def test_an_essential_group_that_crashes_ends_the_attempt(start: Start) -> None:
    run = start({"sample.1.1": "crash", "train.1.1": "wait"})
    assert run.ended("rl").state is State.COMPLETED
    assert run.files.crashed("rl", 1).exists()
    assert [e["outcome"] for e in run.ended_with("train")] == ["requeued", "requeued"]  # it was told, and could save
    assert len(run.began("train", 2)) == 2
    assert run.metrics["start"] == 1


def test_a_fault_of_an_essential_group_is_not_tried_again(start: Start) -> None:
    run = start({"sample.1.1": "wrong", "train.1.1": "wait"})
    job = run.ended("rl")
    assert (job.state, job.exit_code) == (State.FAILED, 78)
    assert "the layers do not divide" in failure_report(run.files, "rl", 1)["error"]  # of sample, which ended it


def test_who_never_comes_is_named(start: Start) -> None:
    acts = {f"sample.{attempt}.1": "absent" for attempt in (1, 2, 3)}
    run = start(acts, train={"timeout_seconds": 2.0})
    job = run.ended("rl")
    assert (job.state, job.exit_code) == (State.FAILED, 1)
    assert len(list(run.files.root.glob("logs/rl/attempt-*/crashed"))) == 3
    failure = json.loads(run.files.failure("rl", 1, 0, fatal=False, group="train").read_text())
    assert "waited 2 s for samples of group sample, rank 1 (local4)" in failure["error"]


def test_a_stop_reaches_all_groups_and_the_next_attempt_meets_anew(start: Start) -> None:
    run = start({"train.1.1": "wait"})
    run.until(lambda: exchanged(run))
    os.kill(batch_shell(run), signal.SIGUSR2)
    assert run.ended("rl").state is State.COMPLETED
    assert not run.files.crashed("rl", 1).exists()
    assert [e["outcome"] for name in ("train", "sample") for e in run.ended_with(name)] == ["requeued"] * 4
    assert run.metrics["start"] == 1
    attempts = [run.files.rendezvous("rl", attempt) for attempt in (1, 2)]
    tokens = [{json.loads(path.read_text())["token"] for path in folder.iterdir()} for folder in attempts]
    assert len(tokens[0]) == len(tokens[1])
    assert not tokens[0] & tokens[1]


def test_a_group_that_does_not_listen_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.render.GRACE_SECONDS", 1)
    run = start({"sample.1.1": "deaf", "train.1.1": "alone"}, sample={"essential": False})
    run.until(lambda: len(run.began("sample")) == 2)
    (run.files.stage("rl") / "go").touch()
    assert run.ended("rl").state is State.COMPLETED


def exchanged(run: Together) -> bool:
    """Whether train has had its answers; told with the act "wait"."""
    path = run.files.events / "rl.1.train-0.jsonl"
    return path.exists() and "exchanged" in path.read_text()


def batch_shell(run: Together) -> int:
    """The process of the job script itself; the shells of its groups have become srun."""
    (pid,) = [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_batch_shell(name, run)]
    return pid


def _is_batch_shell(pid: str, run: Together) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return words[0] == b"/bin/bash" and str(run.files.root.parent).encode() in environ and b"script" in words[1]
