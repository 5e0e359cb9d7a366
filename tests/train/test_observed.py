"""What real runs say of their steps: parts of the time, MFU, memory, the slow rank, spikes, and the trackers' files."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import from_json
from launcher.work.operations import training_operations

from .conftest import HERE, Run, finish_together, train_python

pytestmark = pytest.mark.layout

FACTS = {  # of the tiny Llama-like model, as a plan has them; how many parameters it has does not matter here
    "active_parameters": 100_000,
    "vocabulary": 256,
    "hidden": 64,
    "tied_embeddings": True,
    "layers": 4,
    "heads": 4,
    "head_dim": 16,
}
PEAK = 0.05  # TFLOP/s of a rank
PARTS = ("data", "compute", "pipeline", "reference", "exchange", "optimizer")
EVERYWHERE = {"tensorboard": True, "wandb": True, "wandb_mode": "offline", "mlflow": True, "project": "observed"}


def tell(run: Run, **options: Any) -> Run:
    """Give the run's plan what a planner would: facts of the model, and further options."""
    plan = from_json(run.files.plan.read_text())
    train = replace(plan.stages[0], options={**plan.stages[0].options, **options})
    recipe = {"name": "observed", "env": {"secrets": ["WANDB_API_KEY"]}, "train": train.options["train"]}
    plan = replace(plan, model=dict(FACTS), recipe=recipe, stages=(train, *plan.stages[1:]))
    run.files.plan.write_text(plan.to_json())
    return run


def test_a_killed_and_resumed_run_is_whole_in_every_tracker(
    new_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key := "0123456789abcdef" * 2 + "01234567")
    run = new_run(ranks=2, steps=24, checkpoint={"every_steps": 5, "keep_last": 2, "save_optimizer": True})
    tell(run, peak_tflops=PEAK, tracking=EVERYWHERE)
    attempt = run.start()
    run.wait_for_step(12, attempt)
    attempt.kill()
    run.finish()
    assert run.events("resumed")[-1]["step"] in (5, 10)
    assert sorted(run.steps()) == list(range(1, 25))

    told = run.steps()[20]
    assert 0 < sum(told.get(f"{part}_seconds", 0.0) for part in PARTS) <= told["seconds"] * 1.01 + 0.001
    assert told["compute_seconds"] > 0.2 * told["seconds"]
    assert told["grad_norm"] > 0
    assert told["learning_rate"] > 0
    per_second = told["tokens_per_second"]
    tokens = per_second * told["seconds"]
    least = training_operations(FACTS, [1] * round(tokens), adapters=True) / told["seconds"] / (2 * PEAK * 1e12)
    most = training_operations(FACTS, [round(tokens)], adapters=True) / told["seconds"] / (2 * PEAK * 1e12)
    assert least < told["mfu"] < most  # by how long the sequences are
    ranks = run.events("ranks")[-1]
    assert ranks["step"] == 24
    assert 200 < ranks["resident_mib"] < 4000
    assert ranks["slow_rank"] in (0, 1)
    metrics = run.result()["metrics"]
    assert metrics["peak_memory_mib"] == ranks["resident_mib"]
    assert 0 < metrics["mfu"] < 1

    kept = read_trackers(run)
    losses = {str(step): event["loss"] for step, event in run.steps().items()}
    for tracker in ("tensorboard", "wandb", "mlflow"):
        assert kept[tracker]["train/loss"] == pytest.approx(losses), tracker
        assert len(kept[tracker]["ranks/resident_mib"]) >= 2, tracker
    assert kept["wandb_run"] == {"id": "test-run", "name": "test-run", "project": "observed"}
    assert kept["wandb_config"] == ["env", "name", "plan", "train"]
    assert kept["mlflow_run"] == ["FINISHED", "observed", "test-run"]
    assert len(list(run.files.wandb.glob("offline-run-*"))) == 1
    beside = Path(train_python()).with_name("wandb")
    folder = next(run.files.wandb.glob("offline-run-*"))
    said = subprocess.run([beside, "sync", "--dry-run", folder], capture_output=True, text=True, timeout=120)
    assert "Would sync 1 run(s)" in said.stdout + said.stderr
    found = subprocess.run(["grep", "-rlF", key, run.files.root], capture_output=True, text=True)
    assert found.stdout == "", "the key must not be in any file of the run"


def read_trackers(run: Run) -> dict[str, Any]:
    """What the trackers' own readers find."""
    words = [train_python(), str(HERE / "read_trackers.py"), str(run.files.root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """A process that stands still most of the time, as on a node that is overloaded."""
    stumble = f"while kill -STOP {pid}; do sleep 0.4; kill -CONT {pid}; sleep 0.1; done"
    helper = subprocess.Popen(["bash", "-c", stumble])
    try:
        yield
    finally:
        helper.kill()
        helper.wait()
        os.kill(pid, signal.SIGCONT)


def test_the_slow_rank_is_named(new_run: Callable[..., Run]) -> None:
    run = new_run(ranks=2, steps=100_000)
    attempt = run.start()
    run.wait_for_step(15, attempt)
    with slowed(attempt.processes[1].pid):
        begun = max(run.steps())
        run.wait_for_step(begun + 32, attempt)
    slow = [event for event in run.events("ranks") if event["step"] >= begun + 20]
    assert slow
    for event in slow:
        assert (event["slow_rank"], event["slow_node"]) == (1, os.environ.get("SLURMD_NODENAME") or os.uname().nodename)
        assert event["slowdown"] > 1.5
        assert event["slow_seconds"] > event["usual_seconds"]


ROWS, BAD = 400, 150  # a row that the seed of `new_run` puts into a step after the twentieth


def sums(folder: Path) -> Path:
    """Sums to learn, and among them one long row of noise."""
    source, file = random.Random(1), folder / "rows.jsonl"
    rows = []
    for number in range(ROWS):
        a, b = source.randrange(10), source.randrange(10)
        answer = str(a + b) if number != BAD else "".join(chr(source.randrange(33, 127)) for _ in range(100))
        rows.append({"prompt": f"{a}+{b}=", "completion": answer})
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file


def test_what_ends_training_names_its_samples(new_run: Callable[..., Run], tmp_path: Path) -> None:
    files = {"source": "files", "train": [str(sums(tmp_path))], "evaluation": [], "format": "prompt_completion"}
    wild: dict[str, Any] = {"learning_rate": 1e10, "schedule": "constant", "warmup_steps": 0, "gradient_clip": 0}
    saves = {"every_steps": 10, "keep_last": 2, "save_optimizer": True}
    spike = new_run(
        ranks=2, data=files, steps=45, spike_factor=5.0, on_spike="stop", checkpoint=saves, learning_rate=1e-2
    )
    packed = new_run(ranks=2, data=files, steps=50, packing=True, global_batch_size=4, micro_batch_size=1, **wild)
    pairs = tmp_path / "pairs.jsonl"
    texts = [{"prompt": f"{number}+1=", "chosen": str(number + 1), "rejected": "no"} for number in range(40)]
    pairs.write_text("\n".join(map(json.dumps, texts)) + "\n")
    preferred = new_run(
        ranks=2,
        data={**files, "train": [str(pairs)], "format": "preference"},
        method="dpo",
        steps=50,
        preference={"loss": "sigmoid", "beta": 0.1, "label_smoothing": 0.0, "reference": "adapter-off"},
        **wild,
    )
    finish_together([spike, packed, preferred, spike], program="refused.py")

    said = [json.loads((spike.files.root / f"refused-{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1]
    told = spike.events("spike")[0]
    step = told["step"]
    assert (told["figure"], told["stops"]) == ("loss", True)
    assert step > 20
    assert told["samples"][0] == f"rows.jsonl:{BAD + 1}", "the bad row is named first"
    assert f"in step {step}; samples, those with the highest loss first: {told['samples'][0]}" in said[0]["message"]
    assert f"the newest checkpoint is step-{(step - 1) // 10 * 10:08d}" in said[0]["message"]
    assert said[0]["where"] == "train.on_spike"
    assert "swiftlaunch resume test-run" in said[0]["hint"]
    assert sorted(spike.steps()) == list(range(1, 46)), "the second attempt goes past it"
    again = spike.events("spike")[1]
    assert (again["step"], again["stops"], again["attempt"]) == (step, False, 2)
    assert spike.result()["metrics"]["spikes"] >= 1

    for run, samples in ((packed, ROWS), (preferred, 40)):
        (broken,) = run.events("spike")
        assert broken["value"] is None
        assert 0 < len(broken["samples"]) < samples
        message = json.loads((run.files.root / "refused-0.json").read_text())["message"]
        assert f"is nan in step {broken['step']}; samples: {broken['samples'][0]}" in message
        assert "there is no checkpoint yet" in message


def test_parts_of_a_preference_step_and_of_a_pipeline(new_run: Callable[..., Run]) -> None:
    run = new_run(ranks=2, layout={"pipeline": 2}, steps=12, global_batch_size=8)
    finish_together([tell(run, peak_tflops=PEAK)])
    steps = [event for _, event in sorted(run.steps().items())][1:]
    assert all(event["pipeline_seconds"] > 0 for event in steps)
    for before, after in itertools.pairwise(steps):
        assert before["time"] <= after["time"]
    first, last = run.events("ranks")
    assert (first["step"], first["steps"], last["step"], last["steps"]) == (11, 10, 12, 1)
