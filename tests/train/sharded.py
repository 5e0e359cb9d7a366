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
    found = os.environ.get("SWIFTLAUNCH_TEST_SHARDED_PYTHON", "")
    if not found:
        pytest.fail("set SWIFTLAUNCH_TEST_SHARDED_PYTHON to the python of the sharded environment")
    return found


def finish(runs: list[Run], engine: str, *, number: int = 1, ends_in: float | None = None) -> None:
    """Train runs of one environment and number of ranks one after the other, in one process a rank.

    `ends_in`: after how many seconds the job of each would end.
    """
    attempt = start(runs, engine, number=number, ends_in=ends_in)
    codes = attempt.wait(900)
    assert codes == [0] * runs[0].ranks, attempt.text()


def start(runs: list[Run], engine: str, *, number: int = 1, ends_in: float | None = None, program: str = "") -> Attempt:
    """Begin attempt `number` of such runs; `program` does something else with their plans."""
    folder, ranks = runs[0].files.root, runs[0].ranks
    logs = [folder / f"several-{number}-{rank}.log" for rank in range(ranks)]
    for run in runs:
        run.files.attempt("train", number).mkdir(parents=True, exist_ok=True)
    script = HERE / (program or ("several.py" if engine == "megatron" else "several_sharded.py"))
    words = [python_of(engine), str(script), *(str(run.files.plan) for run in runs)]
    more = {"SWIFTLAUNCH_ATTEMPT": str(number), **({"ENDS_IN": str(ends_in)} if ends_in is not None else {})}
    return Attempt([_process(words, rank, ranks, more, log) for rank, log in enumerate(logs)], logs)


def _process(words: list[str], rank: int, ranks: int, more: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    places = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(ranks)}
    common = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    with log.open("wb") as out:
        return subprocess.Popen(words, env={**os.environ, **common, **places}, stdout=out, stderr=subprocess.STDOUT)
