"""Runs of the engines deepspeed and fsdp: many in one process a rank, or attempts of one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import HERE, ROOT, Attempt, Run, train_python


def python_of(engine: str) -> str:
    """The interpreter of an engine's environment. Fails, rather than skips, where it is not named."""
    if engine == "megatron":
        return train_python()
    found = os.environ.get("SWIFTLAUNCH_TEST_TRL_PYTHON", "")
    if not found:
        pytest.fail("set SWIFTLAUNCH_TEST_TRL_PYTHON to the python of the trl environment")
    return found


def finish(runs: list[Run], engine: str, seconds: float = 600) -> None:
    """Train runs of one engine and number of ranks one after the other, in one process a rank."""
    attempt = start(runs, engine)
    codes = attempt.wait(seconds)
    assert codes == [0] * runs[0].ranks, attempt.text()


def start(runs: list[Run], engine: str, *, number: int = 1) -> Attempt:
    """Begin attempt `number` of runs of one engine and number of ranks."""
    folder, ranks = runs[0].files.root, runs[0].ranks
    logs = [folder / f"several-{number}-{rank}.log" for rank in range(ranks)]
    for run in runs:
        run.files.attempt("train", number).mkdir(parents=True, exist_ok=True)
    script = HERE / ("several.py" if engine == "megatron" else "several_sharded.py")
    words = [python_of(engine), str(script), *(str(run.files.plan) for run in runs)]
    return Attempt([_process(words, rank, ranks, number, log) for rank, log in enumerate(logs)], logs)


def _process(words: list[str], rank: int, ranks: int, number: int, log: Path) -> subprocess.Popen[bytes]:
    places = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(ranks)}
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SWIFTLAUNCH_ATTEMPT": str(number)}
    with log.open("wb") as out:
        return subprocess.Popen(words, env={**os.environ, **common, **places}, stdout=out, stderr=subprocess.STDOUT)
