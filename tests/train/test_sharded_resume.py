"""deepspeed and fsdp go on where they were stopped or killed, to the losses of an undisturbed run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import from_json
from launcher.record import write_text

from .conftest import Run
from .sharded import finish, start
from .test_sharded import FSDP, ZERO2, ZERO3, made

pytestmark = pytest.mark.layout

STEPS = 5
LORA: dict[str, Any] = {"tuner": "lora", "learning_rate": 5e-3}
DROPPING: dict[str, Any] = {**LORA, "lora": {"rank": 8, "alpha": 16, "dropout": 0.2, "target_modules": ["all-linear"]}}
RUNS: dict[str, dict[str, Any]] = {
    "fsdp": FSDP,
    "fsdp-dropout": {**FSDP, **DROPPING},
    "fsdp-pissa": {**FSDP, **LORA, "tuner": "pissa"},
    "zero2": ZERO2,
    "zero3-lora": {**ZERO3, **LORA},
}


def many(folder: Path, models: Callable[[str], Path], ranks: int = 2) -> dict[str, Run]:
    saving = {"every_steps": 1, "keep_last": 2, "save_optimizer": True}
    return {
        name: made(folder / name, models, ranks, {"steps": STEPS, "checkpoint": saving, **settings})
        for name, settings in RUNS.items()
    }


def test_stopped_and_killed_runs_go_on(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    whole = many(tmp_path / "whole", tiny_model)
    finish(list(whole.values()), "fsdp")
    cut = many(tmp_path / "cut", tiny_model)
    # the job would end before a second step were saved, so each run stops after its first one
    finish(list(cut.values()), "fsdp", ends_in=60)
    for name, run in cut.items():
        assert len(run.losses()) == 1, name
        assert not run.files.result("train").exists()

    killed = made(
        tmp_path / "killed",
        tiny_model,
        2,
        {"steps": 400, "schedule": "constant", **_saving(5), **FSDP, **LORA},
    )
    attempt = start([killed], "fsdp")
    killed.wait_for_step(12, attempt)
    attempt.processes[1].send_signal(signal.SIGKILL)
    time.sleep(1)
    attempt.kill()
    newest = sorted(killed.files.checkpoints("train").glob("step-*"))[-1]
    weights = next(newest.glob("*.distcp"))
    weights.write_bytes(weights.read_bytes()[:-7])  # as if the disk had lost its end
    before = killed.losses()
    _set_steps(killed, len(before))

    finish([*cut.values(), killed], "fsdp", number=2)
    for name, run in cut.items():
        assert run.events("resumed")[-1]["step"] == 1, name
        assert run.losses() == pytest.approx(whole[name].losses(), abs=1e-6), name
        assert run.norms() == pytest.approx(whole[name].norms(), rel=1e-5), name
        kept = sorted(path.name for path in run.files.checkpoints("train").iterdir())
        assert kept == [f"step-{step:08d}" for step in (STEPS - 1, STEPS)]
    resumed = killed.events("resumed")[-1]["step"]
    assert resumed == int(newest.name.removeprefix("step-")) - 5, "the damaged one is passed over"
    assert killed.losses() == pytest.approx(before, abs=1e-5)


OPTIMIZERS = ("lion", "adamw_8bit", "galore_adamw", "apollo_adamw")  # whose states are kept as they are, on one rank


def test_one_rank_goes_on_with_any_optimizer_and_after_two_ranks(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    common = {"checkpoint": {"every_steps": 1, "keep_last": 3, "save_optimizer": True}}
    two = {name: made(tmp_path / name, tiny_model, 2, {**common, **RUNS[name]}) for name in ("fsdp", "zero2")}
    finish(list(two.values()), "fsdp", ends_in=60)
    settings = {name: {**common, **FSDP, "optimizer": name} for name in OPTIMIZERS}
    cut = {name: made(tmp_path / name, tiny_model, 1, each) for name, each in settings.items()}
    finish(list(cut.values()), "fsdp", ends_in=60)

    whole = {name: made(tmp_path / f"{name}-whole", tiny_model, 1, each) for name, each in settings.items()}
    whole["fsdp"] = made(tmp_path / "whole", tiny_model, 1, {**common, **FSDP})
    again = {**cut, "fsdp": _with_one_rank(two["fsdp"])}
    finish([*again.values(), *whole.values()], "fsdp", number=2)
    for name, run in again.items():
        assert run.events("resumed")[-1]["step"] == 1, name
        assert run.losses() == pytest.approx(whole[name].losses(), abs=1e-5), name
    (event,) = again["fsdp"].events("resharded")
    assert (event["from"], event["to"]) == ("FSDP DP2", "FSDP DP1")

    refused = start([_with_one_rank(two["zero2"])], "fsdp", number=2)
    assert refused.wait() == [1]
    assert "this checkpoint cannot go from ZeRO-2 DP2 into ZeRO-2 DP1" in refused.text()


@pytest.mark.parametrize(
    ("ranks", "settings"),
    [
        pytest.param(2, FSDP, id="fsdp"),
        pytest.param(1, FSDP, id="fsdp-alone"),
        pytest.param(1, {**FSDP, "optimizer": "galore_adamw"}, id="galore"),
        pytest.param(2, ZERO2, id="zero2"),
        pytest.param(2, {**ZERO2, "precision": "bf16"}, id="zero2-bf16"),
        pytest.param(2, ZERO3, id="zero3"),
        pytest.param(2, {**ZERO3, **LORA}, id="zero3-lora"),
    ],
)
def test_what_is_saved_is_what_was_there(
    tiny_model: Callable[[str], Path], tmp_path: Path, ranks: int, settings: dict[str, Any]
) -> None:
    run = made(tmp_path / "run", tiny_model, ranks, settings)
    attempt = start([run], settings["engine"], program="copy_checks.py")
    assert attempt.wait(300) == [0] * ranks, attempt.text()


def test_a_loss_that_is_no_number_names_its_samples(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    wild = {"learning_rate": 10.0, "schedule": "constant", "warmup_steps": 0, "gradient_clip": 0.0, "steps": 80}
    run = made(tmp_path / "wild", tiny_model, 2, {**wild, "optimizer": "sgd", **FSDP})
    attempt = start([run], "fsdp")
    assert 1 in attempt.wait()
    assert "samples: chain_sum:7:" in attempt.text()


def _saving(every: int) -> dict[str, Any]:
    return {"checkpoint": {"every_steps": every, "keep_last": 3, "save_optimizer": True}}


def _set_steps(run: Run, steps: int) -> None:
    """End the run earlier; its learning rate is constant."""
    plan = json.loads(run.files.plan.read_text())
    plan["stages"][0]["options"]["train"]["steps"] = steps
    write_text(run.files.plan, json.dumps(plan))


def _with_one_rank(run: Run) -> Run:
    plan = json.loads(run.files.plan.read_text())
    plan["stages"][0]["resources"]["tasks_per_node"] = 1
    write_text(run.files.plan, json.dumps(plan))
    assert from_json(run.files.plan.read_text()).stage("train").resources.world_size == 1
    return Run(run.files, 1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """With room for one checkpoint of a tiny model."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("settings", [FSDP, ZERO2], ids=["fsdp", "zero2"])
def test_a_full_disk_is_told_and_the_next_attempt_goes_on(
    tiny_model: Callable[[str], Path], tmp_path: Path, small_disk: Path, settings: dict[str, Any]
) -> None:
    run = made(tmp_path / "run", tiny_model, 2, {"steps": 5, **_saving(2), **settings})
    folder = run.files.checkpoints("train")
    folder.parent.mkdir(parents=True)
    folder.symlink_to(small_disk)
    attempt = start([run], settings["engine"])
    assert 0 not in attempt.wait(300), attempt.text()
    last = [log.read_text().rstrip().splitlines()[-1] for log in attempt.logs]
    full = f"OSError: [Errno 28] No space left on device: '{folder}/step-00000004'"
    assert any(line.endswith(full) for line in last), last
    assert all(line.endswith((full, "another rank could not write its part of the checkpoint")) for line in last), last
    assert [path.name for path in folder.iterdir()] == ["step-00000002"], "nothing half written takes room"
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish([run], settings["engine"], number=2)
    assert run.events("resumed")[-1]["step"] == 2
    assert len(run.losses()) == 5
