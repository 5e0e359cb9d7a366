"""A stage that does what a test tells it, and chains of such stages; script, srun and exit codes are the real ones."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher import assets
from launcher.plan import Environment, Plan, Resources, Resume, Stage
from launcher.record import read_events, write_text
from launcher.render import render
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler
from launcher.scheduler.base import Job
from launcher.submission import _snapshot

PROBE = """
import os, re, signal, tempfile, time
from multiprocessing import Process
from launcher.errors import WorkerError
from launcher.work.context import Requeue

OOM = (
    "slurmstepd-node1: error: Detected 1 oom-kill event(s) in StepId=1.0. Some of your processes may have been killed "
    "by the cgroup out-of-memory handler."
)

def run(context):
    acts = (context.files.stage(context.stage.name) / "acts").read_text().split()
    act = acts[min(context.attempt, len(acts)) - 1]
    context.event("metric", name="end_time", value=context.end_time)
    context.event("progress", done=context.attempt, total=len(acts), unit=act)
    if act == "half" and context.rank == context.world_size - 1:
        raise ConnectionError("peer went away")
    if act in ("wait", "half"):
        while not context.stop_requested:
            time.sleep(0.05)
        raise Requeue("asked to stop")
    if act == "kill" and context.rank == context.world_size - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "oom":  # as slurmstepd and the kernel do it, where memory is limited
        if context.rank == context.world_size - 1:
            print(OOM, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    if act in ("kill", "hang"):
        time.sleep(600)
    if act == "memory":
        raise MemoryError
    if act == "sick" and context.rank == context.world_size - 1:
        raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
    if act == "bus" and context.rank == context.world_size - 1:
        os.kill(os.getpid(), signal.SIGBUS)
    if act in ("sick", "bus"):
        time.sleep(600)
    if act in ("stall", "freeze", "grip"):
        context.watchdog.expect_steps()
        for step in range(8):
            context.watchdog.beat(step, 100)
            time.sleep(0.05)
        if act == "freeze" and context.rank == context.world_size - 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if act == "grip" and context.rank == context.world_size - 1:
            re.match("(a+)+$", "a" * 60 + "b")  # does not let go of the interpreter for years
        time.sleep(600)
    if act == "idle":
        raise Requeue("nothing was saved")
    if act == "slow":
        while not context.stop_requested:
            time.sleep(0.05)
        time.sleep(2)
        context.saved()
        raise Requeue("saved at leisure")
    if act == "litter":  # what engines leave to exit handlers
        context.kept = tempfile.TemporaryDirectory(), Process(target=time.sleep, args=(600,))
        context.kept[1].start()
        context.event("metric", name="litter", value=[context.kept[0].name, context.kept[1].pid])
    if act == "wrong":
        raise WorkerError("the layers do not divide")
    if act == "net":
        raise ConnectionError("peer went away")
    context.rendezvous()
    if context.is_main:
        context.finish(metrics={"acts": act, "world_size": context.world_size})
"""


def tell(files: RunDir, stage: str, acts: list[str]) -> None:
    """Say what the attempts of a probe stage shall do; the last act counts for all further ones."""
    write_text(files.stage(stage) / "acts", "\n".join(acts))


def attempts(files: RunDir, stage: str) -> list[str]:
    """What the attempts were told to do; a rank may be killed before it says so, so any rank counts."""
    told = {e["attempt"]: e["unit"] for e in read_events(files.events, stage=stage) if e["kind"] == "progress"}
    return [told[attempt] for attempt in sorted(told)]


class Chain:
    """A run of probe stages, each after the one before, submitted at once. `polls` is in seconds."""

    def __init__(
        self, root: Path, scheduler: Scheduler, stages: dict[str, list[str]], *, polls: float = 0.05, **given: Any
    ) -> None:
        """`given` are fields of Resume (backoff is off where not given) and of Resources."""
        resume = {name: given.pop(name) for name in Resume.__dataclass_fields__ if name in given}
        self.files = RunDir(root)
        self.scheduler = scheduler
        self.polls = polls
        need = {
            **{"nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0},
            **{"memory_mib": 64, "time_limit_minutes": 5},
            **{"requeue": resume.get("mode") != "chain"},
            **given,
        }
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
                    resources=Resources(**need),
                    environment=Environment(role="train", kind="venv", python=sys.executable),
                    options={},
                    depends_on=(names[index - 1],) if index else (),
                    max_attempts=3,
                    resume=Resume(**{"backoff_seconds": 0, **resume}),
                )
                for index, name in enumerate(names)
            ),
        )
        write_text(self.files.plan, self.plan.to_json())
        _snapshot(self.files.code / "launcher")
        (self.files.code / "launcher/work/probe.py").write_text(PROBE)
        self.jobs: dict[str, str] = {}
        for name, text in render(self.plan, assets.folder("templates")).items():
            write_text(self.files.script(name), text, mode=0o755)
            tell(self.files, name, stages[name])
            self.files.batch_log(name).parent.mkdir(parents=True)
        self.submit()

    def submit(self) -> None:
        for stage in self.plan.stages:
            parents = [self.jobs[parent] for parent in stage.depends_on]
            depends_on = parents
            for _ in range(1 + stage.resume.continuations):
                job_id = self.scheduler.submit(self.files.script(stage.name), depends_on=depends_on)
                self.jobs[stage.name] = job_id
                depends_on = [*parents, f"afterany:{job_id}"]

    def job(self, stage: str) -> Job:
        return self.scheduler.jobs([self.jobs[stage]])[self.jobs[stage]]

    def until(self, condition: Callable[[], bool], seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            logs = "\n".join(path.read_text() for path in self.files.root.glob("logs/*/*.log"))
            assert time.monotonic() < deadline, logs
            time.sleep(self.polls)

    def ended(self, stage: str) -> Job:
        self.until(lambda: self.job(stage).state.terminal)
        return self.job(stage)

    def attempts(self, stage: str) -> list[str]:
        return attempts(self.files, stage)
