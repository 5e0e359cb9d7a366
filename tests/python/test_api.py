"""launcher.submit and launcher.Run, as a program of the user's uses them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

import launcher
from launcher import watch
from launcher.errors import InputError, SchedulerError, WaitTimeout
from launcher.scheduler import Scheduler
from tests.chain.conftest import GOOD, User

pytestmark = pytest.mark.local

POLL = 0.1


@pytest.mark.usefixtures("workers")
def test_a_recipe_from_submit_to_results(here: User) -> None:
    run = launcher.submit("recipe.toml", site="./here.toml", set={"train.steps": 7, "name": "via-python"})
    assert run.run_dir == here.root / "runs" / run.run_id
    assert run.run_id.startswith("via-python-")
    results = run.results(timeout=90, poll=POLL)
    assert list(results) == [stage.name for stage in run.plan.stages]
    assert results["train"].metrics == {"steps": 7}
    assert results["quantize"].artifacts == {"made": "quantize"}
    assert results["export"].folder == run.run_dir / "stages/export/artifact"
    assert results["train"].folder is None
    assert run.status().succeeded
    assert "train at work" in run.logs("train", rank=1)
    assert run.resume() == []
    assert [each.run_id for each in launcher.runs()] == [run.run_id]
    assert launcher.open_run("latest").run_dir == run.run_dir


@pytest.mark.usefixtures("workers")
def test_a_second_run_from_a_dictionary(here: User) -> None:
    recipe = tomllib.loads(GOOD)
    first, second = (launcher.submit({**recipe, "name": name}, "./here.toml") for name in ("one", "two"))
    assert first.results(90, POLL).keys() == second.results(90, POLL).keys()
    # the dictionary is kept as the recipe that it is
    assert tomllib.loads((second.run_dir / "recipe.toml").read_text()) == {**recipe, "name": "two"}
    assert second.plan.recipe["data"]["train"] == [str(here.folder / "rows.jsonl")]


@pytest.mark.usefixtures("here", "workers")
def test_results_of_a_run_that_failed_raise_its_report() -> None:
    run = launcher.submit("recipe.toml", site="./here.toml", set={"name": "broken"})
    with pytest.raises(launcher.RunFailed) as caught:
        run.results(timeout=90, poll=POLL)
    error = caught.value
    assert (error.run_id, error.stage, error.state) == (run.run_id, "quantize", "FAILED")
    assert error.report["error"] == "group_size does not divide"
    assert error.report["error_class"] == "WorkerError"
    assert "group_size does not divide" in str(error)
    assert f"swiftlaunch logs {run.run_id} quantize" in str(error)


@pytest.mark.usefixtures("here", "workers")
def test_wait_cancel_and_resume() -> None:
    run = launcher.submit("recipe.toml", site="./here.toml", set={"name": "slow"})
    with pytest.raises(WaitTimeout) as caught:
        run.wait(timeout=0.2, poll=POLL)
    assert isinstance(caught.value, TimeoutError)
    assert run.cancel("quantize")
    assert run.cancel()
    assert run.wait(timeout=60, poll=POLL).state == "CANCELLED"
    assert run.cancel() == []
    with pytest.raises(launcher.RunFailed, match="is CANCELLED"):
        run.results()
    assert "train" in run.resume()
    run.cancel()
    run.wait(timeout=60, poll=POLL)


@pytest.mark.usefixtures("here", "workers")
def test_a_scheduler_that_does_not_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    run = launcher.submit("recipe.toml", site="./here.toml")
    answers = watch.open_scheduler
    asked = []

    def restarting(kind: str, *, state_dir: Path) -> Scheduler:
        asked.append(kind)
        if len(asked) < 4:
            raise SchedulerError("squeue failed: Connection refused")
        return answers(kind, state_dir=state_dir)

    monkeypatch.setattr(watch, "open_scheduler", restarting)
    assert run.status().trouble == "squeue failed: Connection refused"
    with pytest.warns(RuntimeWarning, match="Connection refused"):
        assert list(run.results(timeout=90, poll=POLL)) == [stage.name for stage in run.plan.stages]
    asked.clear()
    monkeypatch.setattr(run, "status", lambda: replace(watch.refresh(run.run_dir), trouble="down", state="UNKNOWN"))
    asked.extend("...")
    with pytest.warns(RuntimeWarning), pytest.raises(WaitTimeout, match="down"):
        run.wait(timeout=0.2, poll=POLL)


def test_faults_are_all_told_and_nothing_is_submitted(here: User) -> None:
    before = here.everything()
    with pytest.raises(InputError) as caught:
        launcher.submit({"train": {"stps": 3}, "model": {"path": 4}}, "./here.toml", {"train.learning_rate": "fast"})
    told = str(caught.value)
    assert len(caught.value.faults) >= 3, told
    assert "recipe:" in told
    assert "--set train.learning_rate" in told
    for recipe, words in (({"name": None}, "cannot be written as TOML"), ("nowhere", "no file and no shipped recipe")):
        with pytest.raises(launcher.UserError, match=words):
            launcher.submit(recipe, "./here.toml")
    with pytest.raises(launcher.UserError, match="no site"):
        launcher.submit("recipe.toml", "elsewhere")
    with pytest.raises(launcher.UserError, match="no run"):
        launcher.open_run("latest")
    assert here.everything() == before


def test_importing_the_package_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; before = set(sys.modules); import launcher; after = set(sys.modules); "
        "print(sorted(after - before)); print(sorted(set(dir(launcher)) >= {'submit', 'Run'} for _ in [0])); "
        "launcher.nothing"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.stdout.splitlines() == ["['launcher']", "[True]"]
    assert "AttributeError: module 'launcher' has no attribute 'nothing'" in finished.stderr
