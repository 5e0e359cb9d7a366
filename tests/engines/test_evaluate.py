"""Evaluation of the real demo model."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import HERE, SUMS, Run, engine_python, evaluate_options

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def items(run: Run, stage: str) -> list[dict[str, object]]:
    path = run.files.artifact(stage) / "items.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_generated_problems(run: Run, real_model: Path) -> None:
    result = run.finish("evaluate", "transformers", evaluate_options({"path": str(real_model)}, limit=10))
    rows = items(run, "evaluate")
    metrics = result["metrics"]
    assert metrics["problems"] == len(rows) == 10
    assert metrics["accuracy"] == pytest.approx(sum(row["score"] == 1.0 for row in rows) / 10)
    assert metrics["mean_score"] == pytest.approx(sum(row["score"] for row in rows) / 10)
    assert 0 < metrics["accuracy"] < 1, "one-digit sums: the demo model knows some"
    assert metrics["accuracy_stderr"] > 0
    assert all(row["output"] for row in rows)
    assert len({row["id"] for row in rows}) == 10
    # the likelihoods, by another program
    command = [engine_python("transformers"), str(HERE / "reference_nll.py"), str(real_model)]
    messages = [*rows[0]["messages"], {"role": "assistant", "content": rows[0]["answer"]}]
    found = subprocess.run([*command, json.dumps(messages)], check=True, capture_output=True, timeout=240)
    expected = json.loads(found.stdout)
    assert rows[0]["answer_tokens"] == expected["tokens"]
    assert rows[0]["answer_nll"] == pytest.approx(expected["nll"], rel=1e-4)
    done = [event["done"] for event in run.events("evaluate", "progress")]
    assert done == sorted(done)
    assert done[0] == 0
    assert done[-1] == run.events("evaluate", "progress")[-1]["total"] == 20
    named = {event["name"]: event["value"] for event in run.events("evaluate", "metric")}
    assert named == metrics


def test_files_are_compared_as_text(run: Run, real_model: Path, chat_file: Path) -> None:
    data = {"source": "files", "evaluation": [str(chat_file)], "train": [], "format": "auto"}
    options = evaluate_options({"path": str(real_model)}, data, batch_size=2, max_new_tokens=8)
    metrics = run.finish("evaluate", "transformers", options)["metrics"]
    rows = items(run, "evaluate")
    assert [row["score"] for row in rows] == [1.0, 0.0], rows
    assert metrics["accuracy"] == 0.5
    assert rows[0]["answer_nll"] < rows[1]["answer_nll"]


def test_a_stop_asks_for_another_attempt(run: Run, cut_model: Path) -> None:
    options = evaluate_options({"path": str(cut_model)}, SUMS, max_new_tokens=4000, perplexity=False)
    process = run.start("evaluate", "transformers", options)
    run.wait_for(lambda: run.events("evaluate", "progress"), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert not run.files.result("evaluate").exists()
    assert run.events("evaluate", "attempt_ended")[-1]["outcome"] == "requeued"


def test_a_folder_that_is_no_model_is_fatal(run: Run, tmp_path: Path) -> None:
    run.finish("evaluate", "transformers", evaluate_options({"path": str(tmp_path)}), code=78)
    assert "no config.json" in run.failure("evaluate")
