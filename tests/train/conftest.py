"""Runs the train and export workers as a job script would: one process per rank, plan.json, SLURM_* variables."""

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

from launcher.plan import Environment, Plan, Resources, Stage
from launcher.record import Event, read_events
from launcher.rundir import RunDir

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def train_python() -> str:
    """The interpreter of the train environment. Fails, rather than skips, where it is not named."""
    found = os.environ.get("SWIFTLAUNCH_TEST_TRAIN_PYTHON", "")
    if not found:
        pytest.fail("set SWIFTLAUNCH_TEST_TRAIN_PYTHON to the python of the train environment")
    return found


def told_by(program: str, *words: object) -> Any:
    """What a program of this folder prints last, as JSON; it runs in the train environment."""
    done = subprocess.run(
        [train_python(), str(HERE / program), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        timeout=300,
    )
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class Attempt:
    """The rank processes of one attempt."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def wait(self, seconds: float = 240) -> list[int]:
        deadline = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def text(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.logs)


@dataclass
class Run:
    """One run directory of a train and an export stage."""

    files: RunDir
    ranks: int
    attempts: list[Attempt] = field(default_factory=list)

    def start(self, stage: str = "train", *, end_time: float | None = None) -> Attempt:
        """`end_time`: when the job would end, in Unix seconds."""
        number = len(self.attempts) + 1
        ranks = self.ranks if stage == "train" else 1
        folder = self.files.attempt(stage, number)
        folder.mkdir(parents=True)
        attempt = Attempt([], [self.files.rank_log(stage, number, rank) for rank in range(ranks)])
        for rank, log in enumerate(attempt.logs):
            environment = {
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "SWIFTLAUNCH_ATTEMPT": str(number),
                "SLURM_PROCID": str(rank),
                "SLURM_LOCALID": str(rank),
                "SLURM_NTASKS": str(ranks),
                **({"SLURM_JOB_END_TIME": str(int(end_time))} if end_time else {}),
            }
            with log.open("wb") as out:
                attempt.processes.append(
                    subprocess.Popen(
                        [train_python(), "-m", "launcher.work", str(self.files.plan), stage],
                        env=environment,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                    )
                )
        self.attempts.append(attempt)
        return attempt

    def finish(self, stage: str = "train") -> Run:
        attempt = self.start(stage)
        codes = attempt.wait()
        assert codes == [0] * len(codes), attempt.text()
        return self

    def steps(self) -> dict[int, Event]:
        """The last report of each step."""
        events = read_events(self.files.events, stage="train")
        return {event["step"]: event for event in events if event["kind"] == "step"}

    def events(self, kind: str) -> list[Event]:
        return [event for event in read_events(self.files.events, stage="train") if event["kind"] == kind]

    def losses(self) -> list[float]:
        return [event["loss"] for _, event in sorted(self.steps().items())]

    def norms(self) -> list[float]:
        return [event["grad_norm"] for _, event in sorted(self.steps().items())]

    def validated(self) -> dict[int, float]:
        """Step -> loss of what is not trained on."""
        return {event["step"]: event["loss"] for event in self.events("validation")}

    def result(self, stage: str = "train") -> dict[str, Any]:
        return dict(json.loads(self.files.result(stage).read_text()))

    def wait_for_step(self, step: int, attempt: Attempt, seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while step not in self.steps():
            assert time.monotonic() < deadline, attempt.text()
            assert all(process.poll() is None for process in attempt.processes), attempt.text()
            time.sleep(0.02)


def finish_together(runs: list[Run], seconds: float = 600, program: str = "several.py") -> None:
    """Train several runs of as many ranks one after the other, in one process a rank; see several.py.

    `program` is another one of this folder, which does something else with as many plans.
    """
    ranks = runs[0].ranks
    folder = runs[0].files.root
    attempt = Attempt([], [folder / f"several-{rank}.log" for rank in range(ranks)])
    for rank, log in enumerate(attempt.logs):
        places = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(ranks)}
        common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SWIFTLAUNCH_ATTEMPT": "1"}
        with log.open("wb") as out:
            attempt.processes.append(
                subprocess.Popen(
                    [train_python(), str(HERE / program), *(str(run.files.plan) for run in runs)],
                    env={**os.environ, **common, **places},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    codes = attempt.wait(seconds)
    assert codes == [0] * ranks, attempt.text()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model; the kinds are make_model.py's."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("model") / kind
            subprocess.run(
                [train_python(), str(HERE / "make_model.py"), str(made[kind]), kind], check=True, timeout=120
            )
        return made[kind]

    return make


@pytest.fixture
def new_run(tmp_path: Path, tiny_model: Callable[[str], Path]) -> Iterator[Callable[..., Run]]:
    """Makes runs; whatever they left running is ended with the test."""
    runs: list[Run] = []

    def make(kind: str = "llama", ranks: int = 1, data: dict[str, Any] | None = None, **train: Any) -> Run:
        folder = tmp_path / f"run-{len(runs)}"
        runs.append(write_run(folder, tiny_model(kind), ranks, data or {}, train))
        return runs[-1]

    yield make
    for run in runs:
        for attempt in run.attempts:
            attempt.kill()


def write_run(folder: Path, model: Path, ranks: int, data: dict[str, Any], train: dict[str, Any]) -> Run:
    """A run directory with its plan: SFT with LoRA on sums, unless told otherwise."""
    options: dict[str, Any] = {
        "model": {"name": "tiny", "path": str(model)},
        "data": {
            "source": "reasoning-gym",
            "task": "chain_sum",
            "task_options": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
            "train_size": 48,
            "train_seed": 7,
            "evaluation_size": 8,
            "evaluation_seed": 900001,
            **data,
        },
        "train": {
            "engine": "megatron",
            "method": "sft",
            "tuner": "lora",
            "precision": "fp32",
            "steps": 5,
            "epochs": None,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "sequence_length": 128,
            "learning_rate": 5e-3,
            "minimum_learning_rate": 0.0,
            "schedule": "cosine",
            "warmup_steps": 2,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "gradient_clip": 1.0,
            "seed": 1234,
            "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "target_modules": ["all-linear"]},
            "layout": {},
            "checkpoint": {"every_steps": 100, "keep_last": 2, "save_optimizer": True},
            **train,
        },
        "tracking": {"tensorboard": True},
    }
    environment = Environment("train", "venv", "python")

    def stage(name: str, worker_options: dict[str, Any], tasks: int) -> Stage:
        return Stage(name, name, Resources(1, tasks, 1, 0, 4096, 60), environment, worker_options)

    exporting = {key: options[key] for key in ("model", "train", "data")} | {"train_stage": "train"}
    plan = Plan(
        run_id="test-run",
        name="test",
        run_dir=str(folder),
        site="local",
        scheduler="local",
        user="tester",
        version="0",
        git_sha="",
        recipe_path="",
        recipe={},
        model={},
        data_hash="",
        stages=(stage("train", options, ranks), stage("export", exporting, 1)),
    )
    files = RunDir(folder)
    folder.mkdir(parents=True)
    files.plan.write_text(plan.to_json())
    return Run(files, ranks)
