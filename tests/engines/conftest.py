"""Runs the evaluate, quantize and serve workers as a job script would, each in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launcher import assets, sites
from launcher.plan import Environment, Plan, Resources, Stage
from launcher.record import Event, read_events, read_json
from launcher.rundir import RunDir

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODEL = "smollm2-135m-instruct"
SUMS = {
    "source": "reasoning-gym", "task": "chain_sum", "train_size": 64, "train_seed": 1,
    "task_options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
    "evaluation_size": 12, "evaluation_seed": 1000001,
}  # fmt: skip


def local_site() -> sites.Site:
    return sites.load_site(assets.folder("site") / "local.toml", Path.home())


def engine_python(role: str) -> str:
    """The interpreter of a role's environment. Fails, rather than skips, where there is none."""
    name = f"SWIFTLAUNCH_TEST_{role.upper()}_PYTHON"
    found = os.environ.get(name) or sites.usable_python(local_site(), role, assets.folder("site"))
    if not found:
        pytest.fail(f"set {name} to the python of the {role} environment, or build it: make engines")
    return found


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The demo model's folder. Fails, rather than skips, where it is not."""
    folder = Path(os.environ.get("SWIFTLAUNCH_TEST_MODEL") or Path(local_site().models_dir) / MODEL)
    if not (folder / "config.json").is_file():
        pytest.fail(f"set SWIFTLAUNCH_TEST_MODEL to the folder of {MODEL}, or fetch it: make engines")
    return folder


@pytest.fixture(scope="session")
def cut_model(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two layers of the demo model: real sizes and tokenizer, meaningless text, fast."""
    folder = tmp_path_factory.mktemp("model") / "cut"
    command = [engine_python("transformers"), str(HERE / "cut_model.py"), str(real_model), str(folder), "2"]
    subprocess.run(command, check=True, timeout=240)
    return folder


@dataclass
class Run:
    """A run directory whose stages are started one by one."""

    files: RunDir
    stages: list[Stage] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, name: str, role: str, options: dict[str, Any], *, attempt: int = 1, gpus: int = 0, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start a stage; `name` is its worker's, or worker-something."""
        worker = name.partition("-")[0]
        resources = Resources(1, 1, 2, gpus, 8192, 30)
        python = engine_python(role)
        stage = Stage(name, worker, resources, Environment(role, "venv", python), options)
        self.stages = [*(old for old in self.stages if old.name != name), stage]
        plan = Plan(
            run_id="engines-1", name="engines", run_dir=str(self.files.root), site="local", scheduler="local",
            user="tester", version="0", git_sha="", recipe_path="", recipe={}, model={}, data_hash="",
            stages=tuple(self.stages),
        )  # fmt: skip
        self.files.root.mkdir(exist_ok=True)
        self.files.plan.write_text(plan.to_json())
        self.files.attempt(name, attempt).mkdir(parents=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "SWIFTLAUNCH_ATTEMPT": str(attempt),
            "SLURM_CPUS_PER_TASK": "2",
            **variables,
        }
        with self.files.rank_log(name, attempt, 0).open("wb") as log:
            process = subprocess.Popen(
                [python, "-m", "launcher.work", str(self.files.plan), name],
                env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def finish(self, name: str, role: str, options: dict[str, Any], *, code: int = 0, **more: Any) -> dict[str, Any]:
        """Run a stage to its end, which must be `code`; its result, {} without one."""
        process = self.start(name, role, options, **more)
        assert process.wait(480) == code, self.log(name)
        return dict(read_json(self.files.result(name)) or {})

    def failure(self, name: str) -> str:
        """What a stage said that failed for good."""
        found = read_json(self.files.failure(name, 1, 0, fatal=True))
        return str(found["error"]) if found else ""

    def log(self, name: str) -> str:
        logs = sorted(self.files.attempt(name, 1).glob("*.log"))
        return "\n".join(log.read_text(errors="replace")[-4000:] for log in logs)

    def events(self, name: str, kind: str) -> list[Event]:
        return [event for event in read_events(self.files.events, stage=name) if event["kind"] == kind]

    def wait_for(self, ready: Callable[[], Any], process: subprocess.Popen[bytes], seconds: float = 240) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := ready()):
            assert process.poll() is None, "it ended early"
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.1)
        return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(RunDir(tmp_path / "run"))
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the user's own: one question that the demo model knows, one answer that it will never give."""
    path = tmp_path_factory.mktemp("data") / "chat.jsonl"
    rows = [
        {"prompt": "What is the capital of France?", "completion": "The capital of France is Paris."},
        {"prompt": "What is the capital of France?", "completion": "qzx"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate_options(model: dict[str, Any], data: dict[str, Any] = SUMS, **changes: Any) -> dict[str, Any]:
    evaluate = {"limit": None, "max_new_tokens": 16, "batch_size": 6, "perplexity": True, **changes}
    return {"model": model, "data": data, "evaluate": evaluate}


def quantize_options(model: Path, method: str, **changes: Any) -> dict[str, Any]:
    gptq = method == "gptq"
    quantize = {
        "method": method, "bits": 4 if gptq else 8, "group_size": 64 if gptq else None,
        "calibration_samples": 0 if method == "fp8" else 16, **changes,
    }  # fmt: skip
    return {"model": {"path": str(model)}, "data": SUMS, "quantize": quantize}


def serve_options(model: dict[str, Any], engine: str, quantization: str = "", **changes: Any) -> dict[str, Any]:
    serve = {
        "prompt": "What is the capital of France?", "max_new_tokens": 16, "keep_alive_minutes": 0,
        "host": "127.0.0.1", "port": 0, "extra_arguments": [], **changes,
    }  # fmt: skip
    return {"model": model, "serve": serve, "engine": engine, "quantization": quantization}
