"""Submit and follow for real: the local scheduler, real job scripts, and an engine that only counts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import assets

pytestmark = pytest.mark.local

ROOT = Path(__file__).resolve().parents[2]
RECIPE = str(ROOT / "recipes/sft-smollm2-cpu.toml")
# Stands where a stage's interpreter stands, and is called as it is: -m launcher.work PLAN STAGE.
ENGINE = """#!{python}
import os, sys, time
from pathlib import Path
from launcher.plan import from_json
from launcher.work.context import from_environment

context = from_environment(from_json(Path(sys.argv[3]).read_text()), sys.argv[4], os.environ)
context.event("attempt_started", pid=os.getpid(), versions={{}})
print("rank", context.rank, flush=True)
while context.stage.name == os.environ.get("TEST_HANG"):
    time.sleep(0.1)
if context.stage.name == os.environ.get("TEST_FAIL"):
    sys.exit(78)
if context.is_main:
    context.event("step", step=1, steps=1, loss=0.5, tokens_per_second=10.0, seconds=0.1)
    context.finish(metrics={{"accuracy": 0.5, "problems": 4}} if context.stage.worker == "evaluate" else {{}})
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The words of a short `submit`, in a state folder of its own; what still runs afterwards is cancelled."""
    engine = tmp_path / "engine"
    engine.write_text(ENGINE.format(python=sys.executable))
    engine.chmod(0o755)
    model = tmp_path / "models" / "smollm2-135m-instruct"
    model.mkdir(parents=True)
    known = json.loads((ROOT / "launcher/models/table.json").read_text())[model.name]["config"]
    (model / "config.json").write_text(json.dumps(known))
    site = (assets.folder("site") / "local.toml").read_text()
    site = site.replace('name = "local"', 'name = "here"').replace("~/.cache/swiftlaunch/models", str(model.parent))
    site = site.replace("~/.local/share/swiftlaunch/runs", str(tmp_path / "runs"))
    site = site.replace('kind = "locked"', f'kind = "venv", python = "{engine}"')
    (tmp_path / "here.toml").write_text(site)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("NO_COLOR", "1")
    yield [
        *("submit", RECIPE, "--site", str(tmp_path / "here.toml")),
        *("--set", "evaluate.baseline=false", "--set", "resources.train.memory=1G"),
    ]
    call("cancel", "latest")


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "launcher", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, cwd=ROOT)


def test_follow_to_the_end(words: list[str]) -> None:
    finished = call(*words, "--follow")
    assert finished.returncode == 0, finished.stderr
    run_id = finished.stdout.splitlines()[0]
    assert run_id.startswith("sft-smollm2-cpu-2")
    assert f"{run_id}  COMPLETED in " in finished.stdout
    assert "accuracy (4 problems)" in finished.stdout
    assert f"swiftlaunch serve {run_id}" in finished.stdout
    lines = finished.stderr.splitlines()
    assert any(line.startswith("train ") and "PP2" in line for line in lines)
    assert any(line.split()[1:3] == ["serve", "COMPLETED"] for line in lines)
    assert "\x1b" not in finished.stdout + finished.stderr
    assert call("diff", "latest", *words[1:]).stdout == ""
    differing = call("diff", "latest", *words[1:], "--set", "train.seed=7")
    assert differing.returncode == 1
    assert '+      "seed": 7,' in differing.stdout
    assert call("logs", "latest", "train", "--rank", "1").stdout == "rank 1\n"
    again = call("resume", "latest", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"run_id": run_id, "submitted": []})


def test_a_failed_stage_is_exit_code_1(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_FAIL", "export")
    finished = call(*words, "--follow", "--json")
    assert finished.returncode == 1, finished.stderr
    status = json.loads(finished.stdout)
    assert status["state"] == "FAILED"
    states = {stage["name"]: stage["state"] for stage in status["stages"]}
    assert (states["train"], states["export"], states["serve"]) == ("COMPLETED", "FAILED", "CANCELLED")
    monkeypatch.delenv("TEST_FAIL")
    resumed = call("resume", "latest", "--follow")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stdout.splitlines()[0] == "export"


def test_ctrl_c_leaves_the_run_alone(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_HANG", "train")
    program = [sys.executable, "-m", "launcher", *words, "--follow"]
    process = subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[1:3] == ["train", "RUNNING"]:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    out, err = process.communicate(timeout=30)
    run_id = out.split()[0]
    assert process.returncode == 130
    assert err.splitlines()[-1] == f"interrupted: the run goes on; swiftlaunch status {run_id}"
    assert "Traceback" not in err
    time.sleep(1)
    assert json.loads(call("status", run_id, "--json").stdout)["state"] == "RUNNING"
    program = [sys.executable, "-m", "launcher", "logs", run_id, "--follow"]
    logs = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert logs.stdout is not None
    assert {logs.stdout.readline(), logs.stdout.readline()} == {"train rank 0 | rank 0\n", "train rank 1 | rank 1\n"}
    logs.send_signal(signal.SIGINT)
    _, err = logs.communicate(timeout=30)
    assert logs.returncode == 130
    assert err.splitlines()[-1] == f"interrupted: the run goes on; swiftlaunch status {run_id}"
    cancelled = call("cancel", run_id)
    assert cancelled.returncode == 0
    assert len(cancelled.stdout.split()) >= 4
    assert call("status", run_id, "--follow").returncode == 1
