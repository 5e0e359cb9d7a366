"""What a person sees of training: the table of steps, CSV, the picture, and the words of `status`."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from launcher.lengths import LengthCount
from launcher.record import Recorder
from launcher.rundir import RunDir
from launcher.standing import RunStatus, StageStatus
from launcher.states import State
from launcher.view.console import console
from launcher.view.follow import show_status
from launcher.view.metrics import metrics, metrics_svg, show_metrics, slow_text, to_csv
from launcher.view.results import headline
from launcher.view.summary import show_summary

pytestmark = pytest.mark.unit

STEPS = 1000
SPIKE = 400
RANKS = {
    "steps": 10,
    "memory_rank": 3,
    "memory_node": "n2",
    "allocated_mib": 50000,
    "reserved_mib": 62669,
    "resident_mib": 4200,
    "slow_rank": 9,
    "slow_node": "n5",
    "slow_seconds": 1.3,
    "usual_seconds": 1.0,
    "slowdown": 1.3,
}


@pytest.fixture
def trained(run_dir: RunDir) -> RunDir:
    """Two attempts of a thousand steps: the first got to 520, the second went on after 500."""
    lengths = LengthCount()
    for length in (10, 20, 200):
        lengths.add(length)
    for path in run_dir.events.glob("*"):
        path.unlink()
    for attempt, first, last in ((1, 1, 520), (2, 501, STEPS)):
        recorder = Recorder(run_dir.event_file("train", attempt, 0), stage="train", attempt=attempt, rank=0)
        recorder.event("attempt_started", first - 1.0, host="n0")
        recorder.event("data", first - 0.7, lengths=dataclasses.asdict(lengths.result()), samples=3)
        if attempt == 2:
            recorder.event("resumed", first - 0.5, step=500)
        for step in range(first, last + 1):
            figures = {"loss": 9.0 if step == SPIKE else 1.0, "grad_norm": attempt, "learning_rate": 1e-4}
            figures |= {"tokens_per_second": 52_000.0, "mfu": 0.41, "compute_seconds": 0.8, "optimizer_seconds": 0.1}
            recorder.event("step", 10_000 * (attempt - 1) + step, step=step, steps=STEPS, seconds=1.0, **figures)
        recorder.event("ranks", 10_000 * attempt, step=last, **RANKS)
    recorder.event("spike", 401.0, step=SPIKE, figure="loss", value=9.0, usual=1.0, limit=2.0, samples=list("abcdefg"))
    for step in (500, 1000):
        recorder.event("validation", 10_000 + step, step=step, steps=STEPS, loss=700 / step, samples=24, tokens=480)
    recorder.event("tracking", 1.0, tracker="wandb", place="", trouble="CommError: no answer")
    recorder.event("tracking", 2.0, tracker="mlflow", place="https://mlflow.example.org")
    return run_dir


def printed(show: Callable[..., None], *args: Any, width: int = 120, **options: Any) -> str:
    out = io.StringIO()
    show(*args, console(out, width=width), **options)
    return out.getvalue()


def test_steps_that_were_done_again_count_once(trained: RunDir) -> None:
    found = metrics(trained, "r", "train")
    assert [step["step"] for step in found["steps"]] == list(range(1, STEPS + 1))
    assert {step["attempt"] for step in found["steps"] if step["step"] > 500} == {2}
    assert found["resumed"] == [500]


def test_the_table_says_what_matters(trained: RunDir) -> None:
    text = printed(show_metrics, metrics(trained, "r", "train"), rows=4)
    lines = text.splitlines()
    assert lines[0] == "r  train, 1000 steps"
    assert lines[1].split() == ["step", "loss", "grad", "norm", "learning", "rate", "tok/s", "MFU", "seconds"]
    assert [line.split()[0] for line in lines[2:6]] == ["1", "334", "667", "1000"]
    assert lines[5].split() == ["1000", "1", "2", "0.0001", "52.0", "k", "41.0%", "1"]
    assert "time: compute 80%, optimizer 10%" in lines
    assert "memory up to 61.2 GiB a GPU (rank 3 on n2), 4.1 GiB a process" in lines
    assert "slowest: rank 9 on n5, 1.30 x the usual" in lines
    assert "validation after step 500: loss 1.4 of 24 samples" in lines
    assert "validation after step 1000: loss 0.7 of 24 samples" in lines
    assert "resumed after step 500" in lines
    assert "step 400: loss 9, usual 1; samples a, b, c, d, e and 2 more" in lines
    assert "  tokens: 10 to 200, mean 77, 230 in all" in lines
    assert "wandb  CommError: no answer" in lines
    assert "mlflow  https://mlflow.example.org" in lines


def test_all_rows_and_few(trained: RunDir) -> None:
    found = metrics(trained, "r", "train")
    everything = printed(show_metrics, found, rows=0)
    assert len([line for line in everything.splitlines() if line.endswith(" 41.0%        1")]) == STEPS
    assert printed(show_metrics, found, rows=1).splitlines()[2].split()[0] == "1000"


def test_csv_has_every_step(trained: RunDir) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(metrics(trained, "r", "train")))))
    assert len(rows) == STEPS
    assert (rows[SPIKE - 1]["loss"], rows[0]["mfu"], rows[0]["attempt"]) == ("9.0", "0.41", "1")


def test_the_picture_keeps_a_single_high_step(trained: RunDir) -> None:
    picture = ElementTree.fromstring(metrics_svg(metrics(trained, "a & b", "train")))
    space = "{http://www.w3.org/2000/svg}"
    names = [text.text for text in picture.iter(f"{space}text")]
    assert names[0] == "a & b: train"
    panels = ["loss (orange: validation)", "gradient norm", "learning rate", "MFU"]
    assert [name for name in names if name in panels] == panels
    curves = [line.get("points", "").split() for line in picture.iter(f"{space}polyline")]
    assert all(300 < len(curve) < 700 for curve in curves)
    heights = [float(point.split(",")[1]) for point in curves[0]]
    assert sorted(heights)[0] < sorted(heights)[1], "the spike is the one highest point of the loss"
    colours = [line.get("stroke") for line in picture.iter(f"{space}line") if line.get("stroke-dasharray")]
    assert (colours.count("#bbb"), colours.count("#d62728")) == (5, 2)  # an attempt in all panels, a spike in two
    held_out = [dot for dot in picture.iter(f"{space}circle") if dot.get("fill") == "#ff7f0e"]
    told = [title.text for dot in held_out for title in dot.iter(f"{space}title")]
    assert told == ["validation: 1.4 at step 500", "validation: 0.7 at step 1000"]


def test_the_command(
    trained: RunDir, swiftlaunch: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    drawn = swiftlaunch("metrics", "latest", "--plot", str(tmp_path / "curves.svg"))
    assert drawn.returncode == 0, drawn.stderr
    assert "slowest: rank 9" in drawn.stdout
    assert ElementTree.parse(tmp_path / "curves.svg")
    found = json.loads(swiftlaunch("metrics", "latest", "--json").stdout)
    assert len(found["steps"]) == STEPS
    assert swiftlaunch("metrics", "latest", "--csv").stdout.splitlines()[0].startswith("time,attempt,step,seconds,loss")


def test_a_run_without_steps_says_so(
    run_dir: RunDir, swiftlaunch: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for path in run_dir.events.glob("*"):
        path.unlink()
    done = swiftlaunch("metrics", "latest")
    assert (done.returncode, done.stdout) == (0, "")
    assert "has trained no step yet" in done.stderr


def test_a_rank_is_slow_from_a_fifth_on() -> None:
    assert slow_text(RANKS) == "slowest: rank 9 on n5, 1.30 x the usual"
    assert slow_text({**RANKS, "slowdown": 1.19}) == ""
    assert slow_text({"resident_mib": 1}) == ""


def test_status_tells_of_mfu_memory_a_slow_rank_and_a_spike(
    finished: RunStatus, stage_status: Callable[..., StageStatus], tmp_path: Path
) -> None:
    step = {"kind": "step", "time": 1.0, "attempt": 1, "step": 5, "steps": 9, "seconds": 1.0, "loss": 1.5}
    spike = {"step": 4, "figure": "grad_norm", "value": None, "samples": ["row:7"]}
    stage = stage_status(
        "train",
        State.RUNNING,
        started=1.0,
        step={**step, "tokens_per_second": 52e3, "mfu": 0.41},
        ranks=RANKS,
        spike=spike,
        validation={"step": 3, "loss": 1.75, "samples": 64},
    )
    text = printed(show_status, dataclasses.replace(finished, stages=(stage,), run_dir=tmp_path), width=160)
    assert "5/9 steps  loss 1.500  52.0 k tok/s  41% MFU  61.2 GiB" in text
    assert "train: slowest: rank 9 on n5, 1.30 x the usual" in text
    assert "train: validation after step 3: loss 1.75 of 64 samples" in text
    assert "train: step 4: gradient norm no number; samples row:7" in text


def test_pairs_that_are_not_trained_on(run_dir: RunDir) -> None:
    recorder = Recorder(run_dir.event_file("train", 1, 0), stage="train", attempt=1, rank=0)
    for step in range(1, 5):
        figures = {"loss": 0.7, "rewards/accuracies": 0.5 + step / 10, "grad_norm": 1.0, "learning_rate": 1e-4}
        recorder.event("step", float(step), step=step, steps=4, seconds=1.0, **figures)
    recorder.event("validation", 5.0, step=4, steps=4, loss=0.625, samples=24, pairs=24, **{"rewards/accuracies": 0.75})
    found = metrics(run_dir, "r", "train")
    assert "validation after step 4: loss 0.625, 75.0% right of 24 samples" in printed(show_metrics, found)
    texts = [element.text for element in ElementTree.fromstring(metrics_svg(found)).iter()]
    assert "pairs judged right (orange: validation)" in texts
    assert "validation: 0.75 at step 4" in texts
    assert headline("train", {"validation_loss": 0.625, "validation_accuracy": 0.75}) == (
        "validation loss 0.625, 75.0% of held-out pairs right"
    )


def test_the_summary_names_trackers_and_how_to_send_what_is_offline(
    finished: RunStatus, plan: Any, run_dir: RunDir
) -> None:
    folder = run_dir.wandb / "offline-run-1-x"
    folder.mkdir(parents=True)
    run_dir.mlflow.mkdir()
    text = printed(show_summary, dataclasses.replace(finished, run_dir=run_dir.root), plan, width=300)
    assert f"send it to W&B where there is internet: /env/bin/wandb sync {folder}" in text
    assert [line.split() for line in text.splitlines() if line.startswith("mlflow")] == [
        ["mlflow", str(run_dir.mlflow)]
    ]
