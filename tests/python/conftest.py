"""A user's own Python: recipes with workers that do almost nothing, on the local scheduler, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import launcher.submission
from tests.chain.conftest import User

# every stage: fails where the run is called so, waits where it is, else is done
WORKER = """
import time
from launcher.errors import WorkerError

def run(context):
    print(f"{context.stage.name} at work", flush=True)
    if context.plan.name == "broken" and context.stage.name == "quantize":
        raise WorkerError("group_size does not divide")
    while context.plan.name == "slow" and not context.stop_requested:
        time.sleep(0.05)
    context.raise_if_stopping()
    folder = context.files.artifact(context.stage.name)
    if context.stage.name == "export":
        folder.mkdir()
    context.finish(metrics={"steps": context.plan.recipe["train"]["steps"]}, artifacts={"made": context.stage.name})
"""
SITE = """\
name = "here"
description = "this machine"
scheduler = "local"
runs_dir = "{root}/runs"
models_dir = "{root}/models"
environments_dir = "{root}/environments"
[node]
count = 1
cpus = 4
memory = "8G"
[environments]
train = {{ kind = "venv", python = "{python}" }}
transformers = {{ kind = "venv", python = "{python}" }}
gptq = {{ kind = "venv", python = "{python}" }}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    """A user whose home, state and current folder are this process's, with a site `here.toml`."""
    user = User(tmp_path)
    (user.folder / "here.toml").write_text(SITE.format(root=tmp_path, python=sys.executable))
    monkeypatch.setenv("HOME", str(user.home))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(user.folder)
    return user


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """WORKER in the place of every engine's worker."""
    copy: Callable[[Path], None] = launcher.submission._snapshot

    def with_workers(target: Path) -> None:
        copy(target)
        for name in ("train", "export", "evaluate", "quantize", "serve"):
            (target / f"work/{name}.py").write_text(WORKER)

    monkeypatch.setattr(launcher.submission, "_snapshot", with_workers)
