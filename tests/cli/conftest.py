"""A run made by hand: a plan, a run folder with results and events, and the index that knows it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import Environment, Estimate, Plan, Resources, Stage
from launcher.record import Recorder, write_json, write_text
from launcher.registry import Registry, RunRow
from launcher.rundir import RunDir
from launcher.standing import RunStatus, StageStatus
from launcher.states import State

RUN_ID = "chain-sum-20261122-140359-a1b2"
RESULTS: dict[str, dict[str, Any]] = {
    "baseline": {
        "accuracy": 0.046875,
        "accuracy_stderr": 0.0264,
        "problems": 64,
        "perplexity": 12.314,
        "seconds": 41.2,
    },
    "train": {"final_loss": 0.2512, "steps": 60, "tokens_per_second": 1234.5, "seconds": 300.0},
    "export": {"size_mib": 513.2, "parameters": 134515008, "seconds": 12.0},
    "evaluate": {"accuracy": 0.625, "accuracy_stderr": 0.0605, "problems": 64, "perplexity": 4.5, "seconds": 44.0},
    "quantize": {"size_mib_before": 513.2, "size_mib_after": 120.7, "bits": 4, "accuracy": 0.59375, "problems": 64},
    "serve": {"seconds": 9.1, "seconds_to_listen": 5.8, "seconds_to_answer": 3.21},
}
ARTIFACTS = {"serve": {"prompt": "What is 2 + 2?", "answer": "It is [4].\n", "engine": "transformers"}}


def _stage(name: str, worker: str, after: tuple[str, ...], options: dict[str, Any], **changes: Any) -> Stage:
    stage = Stage(
        name=name,
        worker=worker,
        resources=Resources(1, 1, 2, 0, 4096, 30),
        environment=Environment(role="transformers", kind="venv", python="/env/bin/python"),
        options=options,
        depends_on=after,
        estimate=Estimate(memory_mib_per_rank=1500, seconds=60.0, basis="parameters and problems"),
    )
    return dataclasses.replace(stage, **changes)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Six stages, the training one on two ranks, a name as long as names get."""
    base = {"name": "smollm2-135m-instruct", "path": "/models/smollm2"}
    stages = (
        _stage("baseline", "evaluate", (), {"model": base}),
        _stage(
            "train",
            "train",
            (),
            {"model": base, "train": {"engine": "megatron", "method": "sft"}},
            resources=Resources(1, 2, 1, 0, 6144, 60),
            environment=Environment(role="train", kind="venv", python="/env/bin/python"),
            layout="PP2",
            max_attempts=3,
            estimate=Estimate(memory_mib_per_rank=2048, seconds=300.0, basis="measured tokens per second"),
        ),
        _stage("export", "export", ("train",), {"model": base}, estimate=Estimate()),
        _stage("evaluate", "evaluate", ("export",), {"model": {"name": "m", "artifact_of": "export"}}),
        _stage(
            "quantize",
            "quantize",
            ("export",),
            {"model": {"name": "m", "artifact_of": "export"}, "quantize": {"method": "gptq", "bits": 4}},
        ),
        _stage("serve", "serve", ("quantize",), {"model": {"artifact_of": "quantize"}, "engine": "transformers"}),
    )
    return Plan(
        run_id=RUN_ID,
        name="chain-sum",
        run_dir=str(tmp_path / "runs" / RUN_ID),
        site="local",
        scheduler="local",
        user="ada",
        version="0.1.0",
        git_sha="0123abc",
        recipe_path="/home/ada/recipe.toml",
        recipe={"name": "chain-sum"},
        model={"name": "smollm2-135m-instruct", "parameters": 134515008},
        data_hash="sha256:00",
        stages=stages,
        warnings=("64 problems make a standard error of 6 points",),
    )


@pytest.fixture
def stage_status() -> Callable[..., StageStatus]:
    """A stage's status with what matters given; the rest says nothing."""

    def make(name: str, state: State = State.PENDING, **fields: Any) -> StageStatus:
        base: dict[str, Any] = {
            "worker": "evaluate" if name == "baseline" else name,
            "job_id": "7",
            "attempts": 1 if state is not State.PENDING else 0,
            "reason": "",
            "submitted": 1000.0,
            "started": None,
            "ended": None,
            "result": None,
            "step": None,
            "progress": None,
            "error": "",
            "estimate_seconds": None,
        }
        return StageStatus(name=name, state=state, **{**base, **fields})

    return make


@pytest.fixture
def finished(plan: Plan, stage_status: Callable[..., StageStatus]) -> RunStatus:
    """The run with every stage done."""
    stages = tuple(
        stage_status(
            name,
            State.COMPLETED,
            started=1000.0 + 100 * number,
            ended=1050.0 + 100 * number,
            result={"metrics": metrics, "artifacts": ARTIFACTS.get(name, {})},
        )
        for number, (name, metrics) in enumerate(RESULTS.items())
    )
    return RunStatus(plan.run_id, plan.name, plan.site, "COMPLETED", Path(plan.run_dir), stages, plan.warnings)


@pytest.fixture
def run_dir(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """The run on disk and in the index of a state folder of its own: train done, the rest never submitted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    files = RunDir(Path(plan.run_dir))
    write_text(files.plan, plan.to_json())
    write_text(files.recipe, 'name = "chain-sum"\n')
    for stage in plan.stages:
        write_text(files.script(stage.name), f"#!/bin/bash\necho {plan.run_dir}\n")
    write_text(files.rank_log("train", 1, 0), "first attempt\n")
    write_text(files.rank_log("train", 2, 0), "step 60\n")
    write_text(files.batch_log("train"), "batch shell\n")
    recorder = Recorder(files.event_file("train", 2, 0), stage="train", attempt=2, rank=0)
    recorder.event("attempt_started", 1000.0, job_id="7", host="node1", pid=1, versions={"torch": "2.13.0"})
    recorder.event("step", 1010.0, step=60, steps=60, loss=0.25, tokens_per_second=1234.5, seconds=1.0)
    write_json(files.result("train"), {"stage": "train", "attempt": 2, "metrics": RESULTS["train"], "artifacts": {}})
    row = RunRow(plan.run_id, plan.name, files.root, plan.site, plan.scheduler, 1000.0)
    Registry(tmp_path / "state" / "swiftlaunch" / "registry.sqlite").add(row)
    return files


@pytest.fixture
def swiftlaunch(run_dir: RunDir) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The real program in a process of its own, in the environment of `run_dir`."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "launcher", *words], capture_output=True, text=True, timeout=60)

    return call
