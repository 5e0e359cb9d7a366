"""A user's run on real Slurm, from `swiftlaunch submit` on."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.record import write_json
from tests.chain.probe import attempts
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ClusterUser

pytestmark = pytest.mark.slurm

AFTER_TRAINING = ("export", "evaluate", "quantize", "evaluate-quantized", "serve")


def forgotten(cluster: Cluster, ids: list[str]) -> bool:
    return all(cluster.command("scontrol", "show", "job", job_id).returncode != 0 for job_id in ids)


def test_submit_status_cancel_resume(cluster: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, cluster)
    files = user.submit({"quantize": ["wait", "done"]})
    assert set(user.states(files).values()) == {"PENDING"}
    user.release(files)
    user.until(files, lambda states: states["evaluate"] == "COMPLETED" and attempts(files, "quantize") == ["wait"])
    assert user.states(files)["run"] == "RUNNING"
    user.run("cancel", files.root.name)
    states = user.until(files, lambda states: states["run"] not in ("RUNNING", "PENDING"))
    done = ("baseline", "train", "export", "evaluate")
    given_up = ("quantize", "evaluate-quantized", "serve")
    assert states == {"run": "CANCELLED", **dict.fromkeys(done, "COMPLETED"), **dict.fromkeys(given_up, "CANCELLED")}
    assert attempts(files, "quantize") == ["wait"]

    assert user.run("resume", files.root.name).split() == list(given_up)
    user.release(files)
    assert set(user.until(files, lambda states: states["run"] == "COMPLETED").values()) == {"COMPLETED"}
    submissions = {stage: len(ids) for stage, ids in user.jobs(files).items()}
    assert submissions == {**dict.fromkeys(done, 1), **dict.fromkeys(given_up, 2)}
    assert user.run("resume", files.root.name) == ""


def test_an_id_that_slurm_gave_away_is_not_ours(cluster: Cluster, tmp_path: Path) -> None:
    """As after a crash of the controller: our job is lost, and somebody else's has its id."""
    user = ClusterUser(tmp_path, cluster)
    files = user.submit({})
    theirs = cluster.command("sbatch", "--parsable", "--hold", "--comment=theirs", "--wrap=true").stdout.strip()
    jobs = user.jobs(files)
    cluster.command("scancel", *jobs["train"])
    jobs["train"] = [theirs]
    write_json(files.jobs, jobs)
    assert user.states(files)["train"] == "CANCELLED"  # found by its comment
    user.run("cancel", files.root.name)
    assert cluster.command("squeue", "-h", "-j", theirs, "-o", "%T").stdout.strip() == "PENDING"
    cluster.command("scancel", theirs)


def test_without_accounting(without_accounting: Cluster, tmp_path: Path) -> None:
    cluster = without_accounting
    user = ClusterUser(tmp_path, cluster)
    files = user.submit({"train": ["wrong", "done"]})
    user.release(files)
    states = user.until(files, lambda states: states["train"] not in ("PENDING", "RUNNING"))
    assert states["train"] == "FAILED"
    ids = [job_id for ids in user.jobs(files).values() for job_id in ids]
    user.until(files, lambda states: forgotten(cluster, ids), seconds=150)
    states = user.states(files)
    assert states["baseline"] == "COMPLETED"  # by its result
    assert states["train"] == "FAILED"  # by the report that its rank left
    assert {states[stage] for stage in AFTER_TRAINING} == {"CANCELLED"}  # they waited for it
    assert user.run("resume", files.root.name).split() == ["train", *AFTER_TRAINING]
    user.release(files)
    user.until(files, lambda states: states["run"] == "COMPLETED")
