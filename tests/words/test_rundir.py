from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir import RunDir

pytestmark = pytest.mark.unit

ARGUMENTS: dict[str, Any] = {
    **{"stage": "train", "attempt": 2, "rank": 1, "fatal": True},
    **{"group": "sample", "node": "node7", "array": 3, "run_id": "r", "number": 1},
}


def every_path(files: RunDir) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for name, member in inspect.getmembers(RunDir):
        if name.startswith("_") or name == "root":
            continue
        if isinstance(member, property):
            paths[name] = getattr(files, name)
        elif inspect.isfunction(member):
            names = [word for word in inspect.signature(member).parameters if word != "self"]
            paths[name] = getattr(files, name)(**{word: ARGUMENTS[word] for word in names})
    return paths


def test_every_file_lies_in_the_run_and_no_two_share_a_name() -> None:
    paths = every_path(RunDir(Path("/runs/r")))
    assert paths.pop("unwritten") == Path("/runs/.r.part")  # beside it: its own name until everything is in it
    assert paths.pop("tokens") == Path("/runs/.tokens")  # all runs of the folder share it
    assert len(paths) >= 20
    assert all(path.is_relative_to("/runs/r") and path != Path("/runs/r") for path in paths.values())
    assert len(set(paths.values())) == len(paths)


def test_names_that_the_job_script_relies_on() -> None:
    files = RunDir(Path("/runs/r"))
    assert files.rank_log("train", 2, 0) == Path("/runs/r/logs/train/attempt-2/rank-0.log")
    assert files.crashed("train", 1) == Path("/runs/r/logs/train/attempt-1/crashed")
    assert files.cancelled("train") == Path("/runs/r/stages/train/cancelled")
    assert files.failure("train", 1, 3, fatal=True).name == "fatal-3.json"
    assert files.failure("train", 1, 3, fatal=False).name == "failure-3.json"
