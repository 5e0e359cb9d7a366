"""Commands on a run that lies on disk: what they print, as text and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import run
from launcher.cli.diff import comparable
from launcher.plan import Plan
from launcher.rundir import RunDir

pytestmark = pytest.mark.unit

Program = Callable[..., "subprocess.CompletedProcess[str]"]


def printed_json(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert run([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("text", ["latest", "chain-sum", "chain-sum-2026"])
def test_a_run_has_many_names(text: str, run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    status = printed_json(["status", text], capsys)
    assert status["run_id"] == run_dir.root.name
    states = {stage["name"]: stage["state"] for stage in status["stages"]}
    assert states["train"] == "COMPLETED"
    assert states["export"] == "NOT_SUBMITTED"


def test_a_stage_with_a_result_has_ended(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    """Its job may still be ending, or be forgotten: the summary's times must not leave it out."""
    os.utime(run_dir.result("train"), (5000.0, 5000.0))
    ended = {stage["name"]: stage["ended"] for stage in printed_json(["status", "latest"], capsys)["stages"]}
    assert (ended["train"], ended["export"]) == (5000.0, None)


def test_show_knows_everything(run_dir: RunDir, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed_json(["show", "latest"], capsys)
    train = next(stage for stage in found["stages"] if stage["name"] == "train")
    assert train["versions"] == {"torch": "2.13.0"}
    assert train["metrics"]["final_loss"] == 0.2512
    assert train["attempts"] == 2
    assert found["recipe"] == plan.recipe
    assert found["files"]["run"] == str(run_dir.root)
    assert run(["show", "latest"]) == 0
    text = capsys.readouterr().out
    for word in ("torch 2.13.0", "megatron sft", "PP2", "0123abc", str(run_dir.root / "logs/train")):
        assert word in text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["latest", "train"], "step 60\n"),
        (["latest"], "step 60\n"),
        (["latest", "train", "--attempt", "1"], "first attempt\n"),
        (["latest", "train", "--batch"], "batch shell\n"),
        (["latest", "train", "--follow"], "rank 0 | step 60\n"),
        (["latest", "--follow"], "rank 0 | step 60\n"),
        (["latest", "train", "--follow", "--rank", "0"], "step 60\n"),
        (["latest", "train", "--follow", "--attempt", "1"], "rank 0 | first attempt\nrank 0 | step 60\n"),
    ],
    ids=" ".join,
)
def test_logs(words: list[str], expected: str, swiftlaunch: Program) -> None:
    finished = swiftlaunch("logs", *words)
    assert (finished.returncode, finished.stdout) == (0, expected), finished.stderr


def test_runs_lists_and_rebuilds(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(run_dir.root, run_dir.root.with_name("copy"))
    assert [row["name"] for row in printed_json(["runs"], capsys)] == ["chain-sum"]
    assert run(["runs", "--rebuild"]) == 0
    out, err = capsys.readouterr()
    assert "runs found" in err
    assert out.splitlines()[0].split() == ["run", "state", "site", "submitted"]
    assert run_dir.root.name in out
    assert "INCOMPLETE" in out


def test_nothing_to_cancel(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cancel", "latest"]) == 0
    assert capsys.readouterr() == ("", "nothing to cancel: no such stage waits or runs\n")


def test_reading_commands_print_json(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed_json(["sites"], capsys)["chosen"] == "local"
    assert {state["role"] for state in printed_json(["env", "list"], capsys)} >= {"train", "transformers"}
    assert "smollm2-135m-instruct" in {model["name"] for model in printed_json(["models", "list"], capsys)}
    assert printed_json(["models", "show", "smollm2-135m-instruct"], capsys)["layers"] == 30
    assert run(["schema"]) == 0
    assert "properties" in json.loads(capsys.readouterr().out)


def test_sites_says_which_and_why(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sites", "--site", "local"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines() if line.startswith("*")] == ["local"]
    assert err == "in use: local (--site)\n"


def test_data_counts_rows(tmp_path: Path, run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "a" * length, "completion": "b"} for length in (3, 30, 31)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "others.jsonl").write_text(json.dumps({"prompt": "c", "completion": "d"}) + "\n")
    recipe = tmp_path / "recipe.toml"
    assert run(["init", str(recipe)]) == 0
    text = recipe.read_text().replace("data/train.jsonl", "rows.jsonl").replace("data/evaluation.jsonl", "others.jsonl")
    recipe.write_text(text.replace('"messages"', '"prompt_completion"'))
    capsys.readouterr()
    assert printed_json(["data", str(recipe)], capsys)["train"]["rows"] == 3
    assert run(["data", str(recipe)]) == 0
    out = capsys.readouterr().out
    assert "train  3 rows, format prompt_completion" in out
    assert "▇" in out
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    assert run(["data", str(recipe)]) == 2
    assert "rows.jsonl:1" in capsys.readouterr().err


def test_two_launches_of_one_recipe_do_not_differ(plan: Plan) -> None:
    import dataclasses

    other = dataclasses.replace(plan, run_id="chain-sum-2", run_dir="/elsewhere/chain-sum-2", git_sha="fff")
    scripts = {"train": f"#SBATCH --comment=swiftlaunch:{plan.run_id}\nrun_dir={plan.run_dir}\n"}
    others = {"train": f"#SBATCH --comment=swiftlaunch:{other.run_id}\nrun_dir={other.run_dir}\n"}
    assert comparable(plan, scripts) == comparable(other, others)
    longer = dataclasses.replace(other, warnings=("one more",))
    assert comparable(plan, scripts) != comparable(longer, others)
