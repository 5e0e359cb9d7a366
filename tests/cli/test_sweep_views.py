"""What a person sees of a sweep: the ranking, its picture, counts in `status`, points named on the command line."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from launcher.arrays import ids_to_cancel
from launcher.plan import Plan
from launcher.record import write_json, write_text
from launcher.rundir import RunDir
from launcher.states import State
from launcher.sweep import ArrayJob, Sweep, arranged, point_files, write_arrays
from launcher.sweep import Point as PointOf
from launcher.view.console import console
from launcher.view.follow import show_counts
from launcher.view.sweep_plot import sweep_svg
from launcher.view.sweep_table import leaderboard, show_leaderboard

pytestmark = pytest.mark.unit

EACH = ("train", "export", "evaluate")
VALUES = [
    {"train.learning_rate": 1e-4, "train.tuner": "lora"},
    {"train.learning_rate": 1e-3, "train.tuner": "full & <rest>"},
    {"train.learning_rate": 1e-2, "train.tuner": "lora"},
]


@pytest.fixture
def swept(run_dir: RunDir, plan: Plan) -> RunDir:
    """The run as a sweep of three points: one is done, one is better, one has failed; nothing was submitted."""
    points = arranged([[PointOf(number, 0, 0, values) for number, values in enumerate(VALUES)]], 1001)
    sweep = Sweep(points, EACH, (), "evaluate.accuracy", "maximize", 2)
    write_json(run_dir.sweep, sweep.to_json())
    for point, accuracy in zip(points, (0.25, 0.75, None), strict=True):
        files = point_files(run_dir, point)
        own = dataclasses.replace(plan, run_id=f"{plan.run_id}/{point.number}", run_dir=str(files.root))
        write_text(files.plan, own.to_json())
        for stage in EACH if accuracy is not None else ():
            write_json(files.result(stage), {"metrics": {"accuracy": accuracy}, "artifacts": {}})
    for stage in EACH:
        write_text(run_dir.script(f"{stage}.0"), "#!/bin/bash\n")
    return run_dir


def test_cancelled_in_the_order_of_the_stages(swept: RunDir, plan: Plan) -> None:
    ids = ("98", "99", "100")
    write_arrays(swept, [ArrayJob(stage, 0, (0, 1, 2), job_id) for stage, job_id in zip(EACH, ids, strict=True)])
    point = {f"{stage}/1": f"{job_id}_1" for stage, job_id in zip(EACH, ids, strict=True)}
    assert ids_to_cancel(plan, point, swept) == ["98_1", "99_1", "100_1"]
    every = {
        f"{stage}/{task}": f"{job_id}_{task}" for stage, job_id in zip(EACH, ids, strict=True) for task in range(3)
    }
    assert ids_to_cancel(plan, every, swept) == ["98", "99", "100"]


def found(swept: RunDir, plan: Plan) -> dict[str, Any]:
    sweep = Sweep(
        arranged([[PointOf(number, 0, 0, values) for number, values in enumerate(VALUES)]], 1001),
        EACH,
        (),
        "evaluate.accuracy",
        "maximize",
        2,
    )
    states = {f"{stage}/{number}": State.COMPLETED for stage in EACH for number in (0, 1)}
    states |= {"train/2": State.FAILED, "export/2": State.CANCELLED, "evaluate/2": State.CANCELLED}
    return leaderboard(plan, sweep, swept, states, "FAILED")


def test_ranking(swept: RunDir, plan: Plan) -> None:
    board = found(swept, plan)
    assert [(point["rank"], point["point"], point["value"]) for point in board["points"]] == [
        (1, 1, 0.75),
        (2, 0, 0.25),
        (None, 2, None),
    ]
    assert [point["state"] for point in board["points"]] == ["COMPLETED", "COMPLETED", "FAILED"]
    text = io.StringIO()
    show_leaderboard(board, console(text, width=140), limit=2)
    lines = text.getvalue().splitlines()
    assert "3 points by evaluate.accuracy, largest first: 2 completed, 1 failed" in lines[1]
    assert lines[3].split() == ["1", "1", "0.75", "0.001", "full", "&", "<rest>", "COMPLETED"]
    assert "1 more: --limit 0 shows all" in text.getvalue()
    assert f"swiftlaunch logs {plan.run_id}/2" in text.getvalue()


def test_picture(swept: RunDir, plan: Plan) -> None:
    svg = ElementTree.fromstring(sweep_svg(found(swept, plan)))
    name = "{http://www.w3.org/2000/svg}"
    circles = svg.findall(f"{name}circle")
    assert len(circles) == 4  # two points with a value, in two panels
    assert {circle.findtext(f"{name}title") for circle in circles} >= {"point 1: 0.75 at 0.001"}
    texts = [text.text for text in svg.findall(f"{name}text")]
    assert {"train.learning_rate", "train.tuner", "full & <rest>"} <= set(texts)
    red = [circle for circle in circles if circle.get("fill") == "#d62728"]
    assert {circle.findtext(f"{name}title", "").partition(":")[0] for circle in red} == {"point 1"}


def test_picture_of_nothing(swept: RunDir, plan: Plan) -> None:
    board = found(swept, plan)
    for point in board["points"]:
        point["value"] = point["rank"] = None
    assert ElementTree.fromstring(sweep_svg(board)).findall("{http://www.w3.org/2000/svg}circle") == []


def test_counts() -> None:
    points = {"FAILED": 1, "RUNNING": 3, "COMPLETED": 12, "OUT_OF_MEMORY": 2}
    assert show_counts(points) == "12 completed, 3 running, 1 failed, 2 out of memory"


Call = Callable[..., subprocess.CompletedProcess[str]]


def test_commands(swept: RunDir, swiftlaunch: Call, tmp_path: Path) -> None:
    run = swept.root.name
    status = json.loads(swiftlaunch("status", run, "--json").stdout)
    counts = {stage["name"]: stage["points"] for stage in status["stages"]}
    assert counts["train"] == {"NOT_SUBMITTED": 1, "COMPLETED": 2}
    assert counts["quantize"] is None
    picture = tmp_path / "sweep.svg"
    shown = swiftlaunch("sweep", run, "--plot", str(picture))
    assert (shown.returncode, picture.exists()) == (0, True), shown.stderr
    point = json.loads(swiftlaunch("status", f"{run}/1", "--json").stdout)
    assert point["run_id"] == f"{run}/1"
    assert {stage["name"]: stage["state"] for stage in point["stages"]}["evaluate"] == "COMPLETED"


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("status", "RUN/3"), "has no point 3", "its points are 0 to 2"),
        (("logs", "RUN", "train"), "every point has a stage train", "swiftlaunch logs RUN/0 train"),
        (("resubmit", "RUN"), "--failed", ""),
    ],
)
def test_refused(swept: RunDir, swiftlaunch: Call, words: tuple[str, ...], message: str, hint: str) -> None:
    run = swept.root.name
    finished = swiftlaunch(*(word.replace("RUN", run) for word in words))
    assert finished.returncode == 2
    assert message in finished.stderr
    assert hint.replace("RUN", run) in finished.stderr


def test_a_run_that_is_no_sweep(run_dir: RunDir, swiftlaunch: Call) -> None:
    run = run_dir.root.name
    for words, message in ((("sweep", run), "is no sweep"), (("show", f"{run}/0"), "it has no point 0")):
        finished = swiftlaunch(*words)
        assert finished.returncode == 2
        assert message in finished.stderr
