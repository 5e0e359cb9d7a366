"""The Slurm client against real Slurm: odd values and ids, lost answers, a controller that is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.errors import SchedulerError, UserError
from launcher.scheduler import Scheduler, open_scheduler
from launcher.states import State
from tests.slurm.cluster import Cluster

pytestmark = pytest.mark.slurm


def script(folder: Path, *options: str, command: str = "true") -> Path:
    path = folder / "job script.sh"
    lines = [f"#SBATCH {option}" for option in ("--output=/dev/null", *options)]
    path.write_text("\n".join(["#!/bin/bash", *lines, command, ""]))
    return path


def ids(cluster: Cluster, comment: str) -> Sequence[str]:
    lines = cluster.command("squeue", "-h", "--states=all", "-o", "%i %k").stdout.splitlines()
    return [line.partition(" ")[0] for line in lines if line.partition(" ")[2] == comment]


def test_find_sees_what_never_started(slurm: Scheduler, tmp_path: Path) -> None:
    options = ("--comment=never", "--kill-on-invalid-dep=yes")
    held = slurm.submit(script(tmp_path, *options, "--hold"))
    waiting = slurm.submit(script(tmp_path, *options), depends_on=[held])
    assert [(job.job_id, job.state) for job in slurm.find("never")] == [
        (held, State.PENDING),
        (waiting, State.PENDING),
    ]
    assert slurm.find_below("nev") == slurm.find("never")
    assert slurm.find_below("ever") == []
    slurm.cancel([held])
    assert slurm.find("never")[0].state is State.CANCELLED
    another = open_scheduler("slurm", state_dir=Path("/nonexistent"))  # which has not just submitted it itself
    with pytest.raises(UserError, match="CANCELLED"):
        another.submit(script(tmp_path), depends_on=[held])
    slurm.cancel([waiting])
    assert {job.state for job in slurm.find("never")} == {State.CANCELLED}


def test_find_by_accounting_alone(slurm: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = slurm.submit(script(tmp_path, "--comment=accounted", "--hold"))
    slurm.cancel([held])
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "squeue").write_text("#!/bin/sh\n")  # a queue that has forgotten all jobs
    (programs / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for _ in range(50):
        if found := slurm.find("accounted"):
            break
    assert [(job.job_id, job.state) for job in found] == [(held, State.CANCELLED)]


def test_an_id_that_slurm_does_not_know(slurm: Scheduler, tmp_path: Path, cluster: Cluster) -> None:
    assert slurm.jobs(["999999"])["999999"].state is State.UNKNOWN
    with pytest.raises(SchedulerError, match="does not know: 999999"):
        slurm.submit(script(tmp_path, "--comment=orphan"), depends_on=["999999"])
    assert not ids(cluster, "orphan")


def test_cancel(slurm: Scheduler, tmp_path: Path) -> None:
    job_id = slurm.submit(script(tmp_path, command="sleep 100"))
    with pytest.raises(UserError, match="'1 0'"):
        slurm.cancel([job_id, "1 0"])
    assert not slurm.jobs([job_id])[job_id].state.terminal
    slurm.cancel(["999999", job_id])
    for _ in range(100):
        if slurm.jobs([job_id])[job_id].state is State.CANCELLED:
            break
    assert slurm.jobs([job_id])[job_id].state is State.CANCELLED
    slurm.cancel([job_id])


def test_the_users_settings_do_not_shape_what_we_read(
    slurm: Scheduler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "SQUEUE_FORMAT": "%j",
        "SQUEUE_STATES": "SUSPENDED",
        "SLURM_TIME_FORMAT": "relative",
        "SBATCH_COMMENT": "theirs",
        "SBATCH_HOLD": "1",
    }.items():
        monkeypatch.setenv(name, value)
    job_id = slurm.submit(script(tmp_path, "--comment=ours", command="sleep 100"))
    job = slurm.jobs([job_id])[job_id]
    slurm.cancel([job_id])
    assert job.comment == "ours"
    assert job.submitted is not None


def test_lost_answer_is_not_a_lost_job(slurm: Scheduler, tmp_path: Path, cluster: Cluster) -> None:
    """The controller hangs while sbatch talks to it: sbatch fails, the job is made."""
    controller = cluster.pid("slurmctld")
    path = script(tmp_path, "--comment=lost-answer")
    os.kill(controller, signal.SIGSTOP)
    again = threading.Timer(8, os.kill, (controller, signal.SIGCONT))  # MessageTimeout is 6 s
    again.start()
    try:
        job_id = slurm.submit(path)
    finally:
        again.join()
    assert ids(cluster, "lost-answer") == [job_id]


def test_a_dead_controller_is_named(slurm: Scheduler, cluster: Cluster) -> None:
    cluster.stop("slurmctld")
    try:
        with pytest.raises(SchedulerError) as raised:
            slurm.jobs(["1"])
    finally:
        cluster.start("slurmctld")
    assert "does not answer `scontrol ping`" in raised.value.hint
