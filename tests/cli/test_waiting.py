"""Why a stage waits or was cancelled, when it may start, and what is shown while Slurm does not answer."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import standing, watch
from launcher.cli import run
from launcher.errors import SchedulerError
from launcher.plan import Plan, job_comment
from launcher.record import write_json, write_text
from launcher.registry import Registry, RunRow
from launcher.rundir import RunDir
from launcher.scheduler.base import Job
from launcher.scheduler.reasons import in_words
from launcher.states import State
from launcher.view.words import soon

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("None", ""),
        ("Resources", "is next, waits for nodes to become free"),
        ("(Resources)", "is next, waits for nodes to become free"),
        ("AssocGrpGRES", "its account is at its limit of GPUs; waits for jobs to end"),
        ("QOSMaxJobsPerUserLimit", "its QOS is at its limit of running jobs for one user; waits for jobs to end"),
        ("MaxGRESPerAccount", "the site is at its limit of GPUs for one account; waits for jobs to end"),
        ("PartitionSomethingNew", "PartitionSomethingNew"),
    ],
)
def test_reasons_in_words(reason: str, words: str) -> None:
    assert in_words(reason) == words


@pytest.mark.parametrize(
    ("reason", "parts"),
    [
        ("Priority", ("higher priority", "shorter time limit")),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", ("down, drained", "(UnavailableNodes:node[1-2])")),
        ("ReqNodeNotAvail,_Reserved_for_maintenance", ("(Reserved for maintenance)", "ends in time")),
        ("JobHeldAdmin", ("MaxBatchRequeue", "resume")),
        ("PartitionTimeLimit", ("more time than its partition", "lower time_limit")),
        ("AssocMaxWallDurationPerJobLimit", ("more time than its account", "ask for less")),
        ("AssocGrpGRESMinutes", ("used up its budget of GPUs", "another account")),
        ("QOSMinGRES", ("fewer GPUs", "ask for more")),
        ("AssocMaxCpuMinutesPerJobLimit", ("CPUs times time",)),
        ("launch failed requeued held", ("scontrol release",)),
    ],
)
def test_reasons_say_what_to_do(reason: str, parts: tuple[str, ...]) -> None:
    for part in parts:
        assert part in in_words(reason)


def test_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.mktime((2026, 11, 23, 14, 0, 0, 0, 0, -1))
    monkeypatch.setattr("time.time", lambda: now)
    monkeypatch.setattr("time.localtime", lambda when=now, real=time.localtime: real(when))
    assert [soon(now + later) for later in (-5, 30, 180, 61200)] == [
        "now",
        "now",
        "at 14:03",
        "on 2026-11-24 at 07:00",
    ]


def test_what_a_stage_waits_for(plan: Plan, run_dir: RunDir) -> None:
    jobs = {
        "baseline": Job("1", state=State.PENDING, reason="Priority", expected=5000.0),
        "export": Job("2", state=State.PENDING, reason="Dependency"),
        "evaluate": Job("3", state=State.PENDING, reason="Dependency"),
    }
    stages = {stage.name: stage for stage in standing.run_status(plan, run_dir.root, jobs).stages}
    assert stages["baseline"].expected == 5000.0
    assert "higher priority" in stages["baseline"].why
    assert stages["evaluate"].why == "waits for export"
    assert stages["export"].why == "waits for another job"  # train has its result: Slurm has not looked again yet


def test_a_cancelled_stage_names_the_one_that_failed(plan: Plan, run_dir: RunDir) -> None:
    jobs = {
        "export": Job("2", state=State.OUT_OF_MEMORY),
        "evaluate": Job("3", state=State.PENDING, reason="DependencyNeverSatisfied"),
        "quantize": Job("4", state=State.CANCELLED),
        "serve": Job("5", state=State.CANCELLED),
    }
    stages = {stage.name: stage for stage in standing.run_status(plan, run_dir.root, jobs).stages}
    assert {stages[name].why for name in ("evaluate", "quantize", "serve")} == {"export ran out of memory"}


def test_a_scheduler_that_is_away_for_a_while_ends_no_follower(
    plan: Plan, run_dir: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = standing.run_status(plan, run_dir.root, {"export": Job("2", state=State.RUNNING)})
    answers = iter([running, SchedulerError("squeue failed", hint="it is down"), running])

    def refresh(path: Path) -> standing.RunStatus:
        answer = next(answers)
        if isinstance(answer, SchedulerError):
            raise answer
        return answer

    monkeypatch.setattr(watch, "refresh", refresh)
    looks = watch.follow(run_dir.root, 0.0)
    assert [next(looks).trouble for _ in range(3)] == ["", "squeue failed: it is down", ""]


@pytest.fixture
def on_slurm(
    plan: Plan, run_dir: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], Path]:
    """Two runs of a Slurm site; gives a command of Slurm's a body, which notes its calls in NAME.args."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("launcher.scheduler.slurm.ask._PATIENCE_SECONDS", 0.0)
    for number, name in enumerate((plan.run_id, "chain-sum-again")):
        root = Path(plan.run_dir).with_name(name)
        files = RunDir(root)
        one = dataclasses.replace(plan, run_id=name, run_dir=str(root), scheduler="slurm", site="slurm")
        write_text(files.plan, one.to_json())
        write_text(files.script("train"), "")
        write_text(files.script("export"), "")
        write_json(files.jobs, {"export": [str(20 + number)], "evaluate": [str(30 + number)]})
        index = Registry(tmp_path / "state" / "swiftlaunch" / "registry.sqlite")
        index.add(RunRow(name, plan.name, root, "slurm", "slurm", 1000.0 + number))

    def command(name: str, body: str) -> Path:
        path = programs / name
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{programs}/{name}.args\n{body}\n')
        path.chmod(0o755)
        return programs / f"{name}.args"

    return command


def test_all_runs_are_one_question(
    plan: Plan, on_slurm: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = {"20": (plan.run_id, "export"), "30": (plan.run_id, "evaluate"), "21": ("chain-sum-again", "export")}
    lines = [f"{job}|RUNNING|N/A|N/A|n1|None|n|{job_comment(*whose)}" for job, whose in jobs.items()]
    queue = on_slurm("squeue", "\n".join(f"echo '{line}'" for line in lines))
    accounts = on_slurm("sacct", "")
    assert run(["runs", "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)} == {"RUNNING"}
    assert len(queue.read_text().splitlines()) == len(accounts.read_text().splitlines()) == 1
    assert "--jobs=20,21,30,31" in queue.read_text()


@pytest.mark.parametrize("words", [["status", "latest"], ["show", "latest"], ["runs"]], ids=" ".join)
def test_without_an_answer_the_files_are_shown(
    words: list[str], on_slurm: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    on_slurm("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    on_slurm("scontrol", "echo 'Slurmctld(primary) at vm is DOWN'; exit 1")
    assert run(words) == 1
    out, err = capsys.readouterr()
    assert "UNKNOWN" in out
    assert "chain-sum-again" in out
    assert "controller does not answer `scontrol ping`" in out + err
