"""A run of one stage with the groups train and sample, in every way in which they can share nodes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import assets
from launcher.plan import Environment, Group, Plan, Resources, Resume, Stage
from launcher.planner.groups import co_schedule
from launcher.record import Event, read_events, read_json, write_text
from launcher.render import render
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler
from launcher.sites import Node, Site
from launcher.submission import _snapshot
from tests.chain.probe import Chain

WORKER = Path(__file__).with_name("pair.py")
NEED = Resources(
    nodes=2, tasks_per_node=1, cpus_per_task=1, gpus_per_node=0, memory_mib=512, time_limit_minutes=5, requeue=True
)
# all nodes of these tests are this one machine
VARIABLES = (("GLOO_SOCKET_IFNAME", "lo"), ("OMP_NUM_THREADS", "1"), ("SWIFTLAUNCH_RENDEZVOUS_HOST", "127.0.0.1"))


def site(scheduler: str, *, nodes: int = 4, gpus: int = 4) -> Site:
    node = Node(cpus=16, memory_mib=16000, count=nodes, gpus=gpus)
    return Site("here", "here.toml", scheduler, "/runs", "/models", "/environments", node)


def group(
    name: str, *, python: str = sys.executable, torch: bool = False, timeout_seconds: float = 60.0, **changes: Any
) -> Group:
    """A group of two nodes with a rank each; `changes` are fields of Group and of Resources."""
    need = {key: changes.pop(key) for key in list(changes) if key in Resources.__dataclass_fields__}
    variables = (*VARIABLES, ("WHO", f"{name}'s $own"))
    return Group(
        name=name,
        worker="pair",
        resources=replace(NEED, **need),
        environment=Environment(role="train", kind="venv", python=python, variables=variables),
        options={"torch": torch, "timeout_seconds": timeout_seconds},
        **changes,
    )


def staged(groups: list[Group], where: Site) -> Stage:
    """The stage `rl` of these groups, as the planner places them."""
    lead = groups[0]
    plain = Stage("rl", "", lead.resources, lead.environment, {}, max_attempts=3, resume=Resume(backoff_seconds=0))
    stage, faults = co_schedule(plain, groups, where, where="resources.rl")
    assert not faults
    return stage


class Together(Chain):
    """Such a run, submitted. `acts` are by "GROUP.ATTEMPT.START"; what is not named works."""

    def __init__(self, root: Path, scheduler: Scheduler, stage: Stage, acts: dict[str, str], polls: float) -> None:
        self.files, self.scheduler, self.polls = RunDir(root), scheduler, polls
        self.plan = Plan(
            run_id="pair-1",
            name="pair",
            run_dir=str(root),
            site="here",
            scheduler="slurm",
            user="someone",
            version="0",
            git_sha="",
            recipe_path="recipe.toml",
            recipe={},
            model={},
            data_hash="",
            stages=(stage,),
        )
        write_text(self.files.plan, self.plan.to_json())
        _snapshot(self.files.code / "launcher")
        (self.files.code / "launcher/work/pair.py").write_text(WORKER.read_text())
        write_text(self.files.stage("rl") / "acts", json.dumps(acts))
        (script,) = render(self.plan, assets.folder("templates")).values()
        write_text(self.files.script("rl"), script, mode=0o755)
        self.files.batch_log("rl").parent.mkdir(parents=True)
        self.jobs = {"rl": scheduler.submit(self.files.script("rl"))}

    def until(self, condition: Any, seconds: float = 90) -> None:
        """Wait; logs of the groups are told with those of the job script."""
        try:
            super().until(condition, seconds)
        except AssertionError as error:
            logs = sorted(self.files.root.glob("logs/rl/attempt-*/*/*.log"))
            raise AssertionError("\n".join([str(error), *(f"{path}:\n{path.read_text()}" for path in logs)])) from None

    @property
    def metrics(self) -> dict[str, Any]:
        return dict((read_json(self.files.result("rl")) or {"metrics": {}})["metrics"])

    @property
    def batch_log(self) -> str:
        path = self.files.batch_log("rl")
        return path.read_text() if path.exists() else ""

    def began(self, name: str, attempt: int = 1) -> list[Event]:
        """What the ranks of a group told when they began, by rank; of later starts too."""
        events = [e for e in read_events(self.files.events, stage="rl") if e["kind"] == "progress"]
        own = [e for e in events if e["group"] == name and e["attempt"] == attempt]
        return sorted(own, key=lambda event: (event["start"], event["rank"]))

    def ended_with(self, name: str, attempt: int = 1) -> list[Event]:
        """How the ranks of a group ended, by time."""
        events = [e for e in read_events(self.files.events, stage="rl") if e["kind"] == "attempt_ended"]
        return [e for e in events if e["group"] == name and e["attempt"] == attempt]
