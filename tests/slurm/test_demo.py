"""The demo recipe on the real cluster, with the real engines: training on two nodes, the whole chain to its end."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from launcher.rundir import RunDir
from tests.slurm.cluster import Cluster
from tests.slurm.engines import SHORT, EngineUser

pytestmark = [pytest.mark.slurm, pytest.mark.e2e, pytest.mark.timeout(1500)]

STAGES = ("baseline", "train", "export", "evaluate", "quantize", "evaluate-quantized", "serve")


def test_whole_chain_on_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    user = EngineUser(tmp_path, cluster)
    files = user.submit_demo("resources.train.nodes=2", "resources.train.tasks_per_node=1", *SHORT)
    status = user.until_ended(files, 1200)
    assert status["state"] == "COMPLETED", json.dumps(status, indent=2)
    stages = {stage["name"]: stage for stage in status["stages"]}
    assert tuple(stages) == STAGES
    assert {stage["attempts"] for stage in stages.values()} == {1}
    rows = accounted(cluster, files)
    assert {stage: row[1:3] for stage, row in rows.items()} == {stage: ["COMPLETED", "0:0"] for stage in STAGES}
    assert [rows[stage][3] for stage in STAGES] == ["1", "2", "1", "1", "1", "1", "1"]  # nodes
    assert len(list(files.attempt("train", 1).glob("rank-*.log"))) == 2
    assert stages["serve"]["result"]["artifacts"]["answer"].strip()
    assert cluster.command("squeue", "-h", "--name", "sft-smollm2-cpu:train").stdout == ""


def accounted(cluster: Cluster, files: RunDir) -> dict[str, list[str]]:
    """Stage -> job id, state, exit code, number of nodes, as sacct has them."""
    jobs = json.loads(files.jobs.read_text())
    found: dict[str, list[str]] = {}
    deadline = time.monotonic() + 30
    while len([row for row in found.values() if row[1] == "COMPLETED"]) < len(jobs) and time.monotonic() < deadline:
        for stage, (job_id,) in jobs.items():
            words = ("sacct", "-P", "-n", "-X", "-j", job_id, "-o", "JobID,State,ExitCode,AllocNodes,Elapsed")
            found[stage] = cluster.command(*words).stdout.strip().split("|")
        time.sleep(0.2)
    return found
