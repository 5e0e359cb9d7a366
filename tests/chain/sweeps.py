"""A user who submits sweeps whose stages are cheap: scripts, srun, scheduler and commands are the real ones."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from launcher import submission
from launcher.prepare import prepare
from launcher.rundir import RunDir
from tests.chain.conftest import User

# Every worker: what a stage shall do stands in the learning rate; a file in the point's folder mends it.
WORKER = """
import time
from launcher.errors import WorkerError

def run(context):
    rate = context.plan.recipe["train"]["learning_rate"] if context.plan.recipe["sweep"] is None else 0.0
    if context.stage.worker == "train" and rate == 0.5 and not (context.files.root / "mended").exists():
        raise WorkerError("this point fails")
    if context.stage.worker == "train" and rate == 0.25:
        while not (context.files.root / "go on").exists():
            context.raise_if_stopping()
            time.sleep(0.05)
    if context.stage.worker == "train" and rate == 0.75 and context.attempt == 1:
        raise ConnectionError("peer went away")
    read = context.options["model"].get("artifact_of")
    if read:
        text = (context.files.artifact(read) / "made by").read_text()
        assert text.startswith(read), text
    artifact = context.files.artifact(context.stage.name)
    artifact.mkdir(parents=True, exist_ok=True)
    (artifact / "made by").write_text(f"{context.stage.name} {rate}")
    value = None if rate == 0.125 else 1.0 - rate
    context.finish(metrics={"accuracy": value, "final_loss": rate, "perplexity": 1.0 + rate})
"""
RECIPE = """\
name = "tried"
[model]
path = "tiny"
[data]
source = "files"
train = ["rows.jsonl"]
evaluation = ["eval rows.jsonl"]
[train]
steps = 4
global_batch_size = 4
sequence_length = 64
learning_rate = 1e-4
tuner = "lora"
[evaluate]
limit = 2
[quantize]
method = "gptq"
group_size = 32
evaluate = false
[resources.default]
cpus_per_task = 1
memory = "200M"
time_limit = 10
[sweep]
"""
SITE = """\
name = "tried"
description = "for a test"
scheduler = "{scheduler}"
runs_dir = {runs}
models_dir = {models}
environments_dir = {environments}
[node]
count = 4
cpus = 8
memory = "8000M"
[network]
interface = "lo"
[environments]
train = {python}
transformers = {python}
gptq = {python}
"""


class Sweeper(User):
    """`environ` is what the scheduler's clients need."""

    def __init__(self, root: Path, scheduler: str, patch: pytest.MonkeyPatch, environ: Mapping[str, str]) -> None:
        super().__init__(root)
        self.environ |= environ
        names = {name: json.dumps(str(root / name)) for name in ("runs", "models", "environments")}
        python = f'{{ kind = "venv", python = {json.dumps(sys.executable)} }}'
        self.site = self.folder / "tried.toml"
        self.site.write_text(SITE.format(scheduler=scheduler, **names, python=python))
        for name, value in self.environ.items():
            patch.setenv(name, value)
        patch.delenv("XDG_STATE_HOME", raising=False)
        whole = submission._snapshot

        def snapshot(target: Path) -> None:
            whole(target)
            for worker in ("train", "export", "evaluate", "quantize"):
                (target / f"work/{worker}.py").write_text(WORKER)

        patch.setattr(submission, "_snapshot", snapshot)

    def submit(self, sweep: str, *overrides: str) -> RunDir:
        self.write(RECIPE + sweep)
        ready = prepare(
            self.folder / "recipe.toml",
            overrides=overrides,
            site_name=str(self.site),
            home=self.home,
            environ=self.environ,
        )
        return RunDir(submission.submit(ready, environ=os.environ).run_dir)

    def run(self, *words: str, code: int = 0) -> str:
        finished = self.swiftlaunch(*words)
        assert finished.returncode == code, finished.stdout + finished.stderr
        return finished.stdout

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("status", name, "--json"))
        found["states"] = {stage["name"]: stage["state"] for stage in found["stages"]}
        found["points"] = {stage["name"]: stage["points"] for stage in found["stages"] if stage["points"]}
        return found

    def until(self, name: str, wanted: Callable[[dict[str, Any]], bool], seconds: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not wanted(found := self.status(name)):
            runs = self.root / "runs"
            logs = "\n".join(f"{path}:\n{path.read_text()}" for path in runs.rglob("*.log") if path.stat().st_size)
            assert time.monotonic() < deadline, f"{found['states']} {found['points']}\n{logs[-8000:]}"
            time.sleep(0.3)
        return found

    def ended(self, name: str) -> dict[str, Any]:
        return self.until(name, lambda found: found["state"] not in ("RUNNING", "PENDING"))

    def board(self, name: str) -> list[dict[str, Any]]:
        """The points of `swiftlaunch sweep`, the best first."""
        points: list[dict[str, Any]] = json.loads(self.run("sweep", name, "--json"))["points"]
        return points
