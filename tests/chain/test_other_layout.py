"""Runs that are gone on with otherwise: `resume --set` for other ranks, `export` of a checkpoint.

Whatever is wrong changes nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import assets
from launcher.plan import from_json
from launcher.record import read_events, write_json
from launcher.replan import finish_cut
from launcher.rundir import RunDir

pytestmark = pytest.mark.local


@pytest.fixture
def run(user: Any) -> RunDir:
    """A run whose first stage works until it is cancelled."""
    python = user.root / "python"
    python.write_text(f"#!/bin/bash\ntouch '{user.root}/up'\nexec sleep 600\n")
    python.chmod(0o755)
    site = (assets.folder("site") / "local.toml").read_text().replace('"local"', '"here"', 1)
    (user.folder / "here.toml").write_text(site.replace('kind = "locked"', f'kind = "venv", python = "{python}"'))
    finished = user.swiftlaunch("submit", "recipe.toml", "--site", "here.toml", "--set", "train.seed=7")
    assert finished.returncode == 0, finished.stderr
    return RunDir(user.home / ".local/share/swiftlaunch/runs" / finished.stdout.strip())


def again(user: Any, run: RunDir, *words: str) -> Any:
    sets = [part for word in words for part in ("--set", word)]
    return user.swiftlaunch("resume", run.root.name, *sets, "--site", "here.toml")


def cancelled(user: Any, run: RunDir) -> None:
    until((user.root / "up").exists)
    assert user.swiftlaunch("cancel", run.root.name).returncode == 0
    until(lambda: "CANCELLED" in user.swiftlaunch("status", run.root.name, "--json").stdout)
    (user.root / "up").unlink()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def written(run: RunDir) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in (run.plan, run.jobs, *sorted(run.root.glob("scripts/*")))}


def test_what_is_left_of_a_run_goes_on_in_another_layout(user: Any, run: RunDir) -> None:
    until((user.root / "up").exists)
    before = written(run)
    finished = again(user, run, "train.layout.pipeline=1")
    assert finished.returncode == 2
    assert "a plan changes between jobs" in finished.stderr
    cancelled(user, run)
    write_json(run.result("baseline"), {"stage": "baseline", "metrics": {}, "artifacts": {}})

    finished = again(
        user, run, "train.layout.pipeline=1", "resources.train.tasks_per_node=1", "train.checkpoint.keep_last=3"
    )
    assert finished.returncode == 0, finished.stderr
    assert "train.layout.pipeline: 2 -> 1" in finished.stderr
    assert finished.stdout.split()[:2] == ["train", "export"]
    assert (run.earlier_plan(1)).read_bytes() == before[run.plan]
    old, new = from_json(run.earlier_plan(1).read_text()), from_json(run.plan.read_text())
    train = new.stage("train")
    assert train.options["train"]["layout"]["pipeline"] == 1
    assert train.options["train"]["seed"] == 7, "what was set when the run was submitted is kept"
    assert (train.resources.world_size, train.layout) == (1, "DP1")
    assert new.stage("baseline") == old.stage("baseline"), "what is done stays as it was"
    assert "--ntasks-per-node=1" in run.script("train").read_text()
    (event,) = [event for event in read_events(run.events) if event["kind"] == "replanned"]
    assert (event["earlier"], event["changes"]["train.layout.pipeline"]) == ("plan-1.json", [2, 1])
    cancelled(user, run)


def test_what_would_make_it_another_run_is_refused_and_nothing_changes(user: Any, run: RunDir) -> None:
    cancelled(user, run)
    before = written(run)
    finished = again(user, run, "train.learning_rate=1", "train.global_batch_size=8", "train.layout.tensor=3")
    assert finished.returncode == 2
    for path in ("train.learning_rate", "train.global_batch_size"):
        assert f"--set {path}: a run that has begun cannot change it" in finished.stderr
    assert "train.layout" not in finished.stderr
    finished = again(user, run, "train.layout.pipeline=3")
    assert finished.returncode == 2
    assert "train.layout" in finished.stderr
    (user.folder / "rows.jsonl").write_text(json.dumps({"prompt": "2 + 2?", "completion": "4"}) + "\n")
    finished = again(user, run, "train.layout.pipeline=1")
    assert finished.returncode == 2
    assert "the files are not those that the run began with" in finished.stderr
    assert written(run) == before
    assert not run.earlier_plan(1).exists()
    assert not (user.root / "up").exists()


def test_a_cut_change_is_completed(user: Any, run: RunDir) -> None:
    cancelled(user, run)
    before = written(run)
    plan = run.plan.read_text()
    run.replanned.mkdir()
    (run.replanned / "plan.json").write_text(plan.replace('"fine"', '"other"'))
    (run.replanned / "train.sh").write_text("#!/bin/bash\n")
    write_json(run.replanned / "changes.json", {"earlier": 1, "changes": {}})
    assert finish_cut(run)
    assert run.earlier_plan(1).read_bytes() == before[run.plan]
    assert from_json(run.plan.read_text()).name == "other"
    assert run.script("train").read_text() == "#!/bin/bash\n"
    assert not finish_cut(run)


def test_a_checkpoint_is_exported_beside_the_run(user: Any, run: RunDir) -> None:
    def export(*words: str) -> Any:
        return user.swiftlaunch("export", run.root.name, *words, "--site", "here.toml")

    assert "has no checkpoint yet" in export().stderr
    for step, loss in ((2, 1.25), (4, 1.5)):
        folder = run.checkpoints("train") / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_bytes(bytes(step))
        write_json(folder / "manifest.json", {"loss": loss, "progress": {"step": step}})
    finished = export("--step", "3")
    assert finished.returncode == 2
    assert "kept are 2 (loss 1.2500), 4 (loss 1.5000)" in finished.stderr
    assert "exists" in export("--to", str(user.folder)).stderr
    assert len(list(run.root.parent.iterdir())) == 1, "nothing was submitted"

    finished = export("--step", "2", "--to", "half way")
    assert finished.returncode == 0, finished.stderr
    other = RunDir(run.root.parent / finished.stdout.strip())
    (stage,) = from_json(other.plan.read_text()).stages
    linked = Path(stage.options["checkpoint"])
    assert (linked.parent, linked.name) == (other.checkpoints("export"), "step-00000002")
    assert stage.options["to"] == str(user.folder / "half way")
    first = run.checkpoints("train") / linked.name
    assert (linked / "__0_0.distcp").samefile(first / "__0_0.distcp"), "a second name, not a copy"
    for each in (other, run):
        assert user.swiftlaunch("cancel", each.root.name).returncode == 0
