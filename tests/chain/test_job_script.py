"""The rendered job script under the local scheduler: how attempts end, and what becomes of the chain.

The worker is a probe that does what the test tells it; script, srun, scheduler and exit codes are the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import assets
from launcher.plan import Environment, Plan, Resources, Stage
from launcher.record import read_events, write_text
from launcher.render import render
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler, open_scheduler
from launcher.scheduler.base import Job, Machine
from launcher.states import State
from launcher.submit import _snapshot

pytestmark = pytest.mark.unit

PROBE = """
import os, signal, time
from launcher.errors import WorkerError
from launcher.work.context import Requeue

def run(context):
    acts = context.options["acts"]
    act = acts[min(context.attempt, len(acts)) - 1]
    context.event("progress", done=context.attempt, total=len(acts), unit=act)
    if act == "wait":
        while not context.stop_requested:
            time.sleep(0.05)
        raise Requeue("asked to stop")
    if act == "kill" and context.rank == context.world_size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if act in ("kill", "hang"):
        time.sleep(600)
    if act == "wrong":
        raise WorkerError("the layers do not divide")
    if act == "net":
        raise ConnectionError("peer went away")
    context.rendezvous()
    if context.is_main:
        context.finish(metrics={"acts": act, "world_size": context.world_size})
"""


class Chain:
    """A run of probe stages, each after the one before."""

    def __init__(self, root: Path, scheduler: Scheduler, stages: dict[str, list[str]], **resources: int) -> None:
        self.files = RunDir(root)
        self.scheduler = scheduler
        need = {"nodes": 1, "tasks_per_node": 1, "time_limit_minutes": 5} | resources
        names = list(stages)
        self.plan = Plan(
            run_id="probe-1",
            name="probe",
            run_dir=str(root),
            site="local",
            scheduler="local",
            user="someone",
            version="0",
            git_sha="",
            recipe_path="recipe.toml",
            recipe={},
            model={},
            data_hash="",
            stages=tuple(
                Stage(
                    name=name,
                    worker="probe",
                    resources=Resources(cpus_per_task=1, gpus_per_node=0, memory_mib=64, **need),
                    environment=Environment(role="train", kind="venv", python=sys.executable),
                    options={"acts": acts},
                    depends_on=(names[index - 1],) if index else (),
                    max_attempts=3,
                )
                for index, (name, acts) in enumerate(stages.items())
            ),
        )
        write_text(self.files.plan, self.plan.to_json())
        _snapshot(self.files.code / "launcher")
        (self.files.code / "launcher/work/probe.py").write_text(PROBE)
        self.jobs: dict[str, str] = {}
        for name, text in render(self.plan, assets.folder("templates")).items():
            write_text(self.files.script(name), text, mode=0o755)
            self.files.stage(name).mkdir(parents=True)
            self.files.batch_log(name).parent.mkdir(parents=True)
        for stage in self.plan.stages:
            depends_on = [self.jobs[parent] for parent in stage.depends_on]
            self.jobs[stage.name] = scheduler.submit(self.files.script(stage.name), depends_on=depends_on)

    def job(self, stage: str) -> Job:
        return self.scheduler.jobs([self.jobs[stage]])[self.jobs[stage]]

    def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = "\n".join(path.read_text() for path in self.files.root.glob("logs/*/*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(0.05)

    def ended(self, stage: str) -> Job:
        self.until(lambda: self.job(stage).state.terminal)
        return self.job(stage)

    def attempts(self, stage: str) -> list[str]:
        """What the attempts were told to do; a rank may be killed before it says so, so any rank counts."""
        told = {e["attempt"]: e["unit"] for e in read_events(self.files.events, stage=stage) if e["kind"] == "progress"}
        return [told[attempt] for attempt in sorted(told)]


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    return open_scheduler("local", state_dir=tmp_path / "state", machine=Machine(nodes=2, cpus=4, memory_mib=1024))


def test_chain_completes(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "a run", scheduler, {"first": ["done"], "second": ["done"]}, nodes=2, tasks_per_node=2)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.job("first").state is State.COMPLETED
    result = json.loads(chain.files.result("second").read_text())
    assert result["metrics"] == {"acts": "done", "world_size": 4}
    assert [path.name for path in sorted(chain.files.attempt("first", 1).glob("rank-*.log"))] == [
        f"rank-{rank}.log" for rank in range(4)
    ]


@pytest.mark.parametrize("act", ["kill", "net"])
def test_crash_is_tried_again_and_the_chain_goes_on(tmp_path: Path, scheduler: Scheduler, act: str) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": [act, "done"], "second": ["done"]}, tasks_per_node=2)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == [act, "done"]
    assert chain.job("first").restarts == 1
    assert chain.files.crashed("first", 1).exists()


def test_crashes_are_bounded(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["net"], "second": ["done"]})
    first = chain.ended("first")
    assert (first.state, first.exit_code) == (State.FAILED, 1)
    assert chain.attempts("first") == ["net", "net", "net"]
    assert chain.ended("second").state is State.CANCELLED
    assert "crashed 3 times" in chain.files.batch_log("first").read_text()


def test_fault_of_the_recipe_is_not_tried_again(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["wrong"], "second": ["done"]})
    first = chain.ended("first")
    assert (first.state, first.exit_code) == (State.FAILED, 78)
    assert chain.attempts("first") == ["wrong"]
    assert json.loads(chain.files.failure("first", 1, 0, fatal=True).read_text())["error"] == "the layers do not divide"
    assert chain.ended("second").state is State.CANCELLED


def test_asked_to_stop_is_requeued_without_counting_as_a_crash(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["wait", "wait", "wait", "wait", "done"]})
    for attempt in range(1, 5):
        chain.until(lambda attempt=attempt: len(chain.attempts("first")) == attempt)  # type: ignore[misc]
        starts = [e for e in read_events(chain.files.events) if e["kind"] == "attempt_started"]
        os.kill(int(starts[-1]["pid"]), signal.SIGUSR2)
    assert chain.ended("first").state is State.COMPLETED
    assert not list(chain.files.root.glob("logs/first/attempt-*/crashed"))


def test_cancel_is_not_requeued(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["wait"], "second": ["done"]})
    chain.until(lambda: chain.attempts("first") == ["wait"])
    chain.files.cancelled("first").touch()
    chain.scheduler.cancel([chain.jobs["first"]])
    assert chain.ended("first").state is State.CANCELLED
    assert chain.ended("second").state is State.CANCELLED
    assert chain.attempts("first") == ["wait"]
