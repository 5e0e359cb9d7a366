"""The clusters that these tests bring up, and a user of theirs. A cluster that does not come up fails the tests."""

from __future__ import annotations

import getpass
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import Plan, from_json
from launcher.record import read_json
from launcher.rundir import RunDir
from launcher.scheduler import Scheduler, open_scheduler
from tests.chain.conftest import User
from tests.chain.probe import PROBE, tell
from tests.slurm.cluster import Cluster

# Every job is submitted held: the probe takes the engines' place before it starts.
SITE = """\
name = "real"
description = "four nodes on this machine"
scheduler = "slurm"
runs_dir = {runs}
models_dir = {models}
environments_dir = {environments}
[node]
count = 4
cpus = 16
memory = "16000M"
[network]
interface = "lo"
[[partitions]]
name = "main"
time_limit = "1h"
[quirks]
extra = ["--hold"]
[environments]
train = {python}
transformers = {python}
gptq = {python}
"""


def _up(**settings: Any) -> Iterator[Cluster]:
    # a short path: those of sockets end after 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="swiftlaunch-slurm-", dir="/tmp"))
    cluster = Cluster(folder, **settings)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    yield from _up()


@pytest.fixture(scope="session")
def without_accounting() -> Iterator[Cluster]:
    """No sacct, and a controller that forgets jobs two seconds after their end."""
    yield from _up(accounting=False, min_job_age=2)


@pytest.fixture(scope="session")
def with_limits() -> Iterator[Cluster]:
    """Limits count. The user is in the account `lab`, which a test may limit, and may use the QOS `long`."""
    for cluster in _up(limits=True):
        user = getpass.getuser()
        for words in (
            ("add", "account", "lab", "Fairshare=5"),
            ("add", "qos", "long", "set", "MaxWall=1-00:00:00", "MaxTRESPerUser=gres/gpu=4"),
            ("add", "user", user, "Account=lab", "DefaultAccount=lab", "QOS=normal,long"),
            ("modify", "user", user, "set", "DefaultAccount=lab"),
            ("modify", "user", user, "where", "account=lab", "set", "QOS=normal,long"),
        ):
            cluster.command("sacctmgr", "-i", *words)
        yield cluster


@pytest.fixture
def slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """The scheduler of the cluster with accounting."""
    monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
    return open_scheduler("slurm", state_dir=Path("/nonexistent"))


class ClusterUser(User):
    """A user of a cluster, with a site file of their own for it."""

    def __init__(self, root: Path, cluster: Cluster) -> None:
        super().__init__(root)
        self.cluster = cluster
        self.environ["SLURM_CONF"] = str(cluster.conf)
        names = {name: json.dumps(str(root / name)) for name in ("runs", "models", "environments")}
        python = f'{{ kind = "venv", python = {json.dumps(sys.executable)} }}'
        (self.folder / "real.toml").write_text(SITE.format(**names, python=python))

    def run(self, *words: str) -> str:
        finished = self.swiftlaunch(*words)
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    def submit(self, acts: dict[str, list[str]], *words: str) -> RunDir:
        """Submit the recipe for real, with the probe as every worker; nothing starts before `release`."""
        run_id = self.run("submit", "recipe.toml", "--site", "./real.toml", *words).strip()
        files = RunDir(self.root / "runs" / run_id)
        plan = self.plan(files)
        for stage in plan.stages:
            (files.code / f"launcher/work/{stage.worker}.py").write_text(PROBE)
            tell(files, stage.name, acts.get(stage.name, ["done"]))
        return files

    def plan(self, files: RunDir) -> Plan:
        return from_json(files.plan.read_text())

    def jobs(self, files: RunDir) -> dict[str, list[str]]:
        """Stage -> job ids, oldest first."""
        return dict(read_json(files.jobs) or {})

    def release(self, files: RunDir) -> None:
        ids = [job_id for ids in self.jobs(files).values() for job_id in ids]
        self.cluster.command("scontrol", "release", ",".join(ids))

    def states(self, files: RunDir) -> dict[str, str]:
        """Stage -> state, and "run" -> the whole run's, as `status` tells them."""
        found = json.loads(self.run("status", files.root.name, "--json"))
        return {"run": found["state"], **{stage["name"]: stage["state"] for stage in found["stages"]}}

    def until(self, files: RunDir, wanted: Callable[[dict[str, str]], bool], seconds: float = 90) -> dict[str, str]:
        """The states, once they are as wanted."""
        deadline = time.monotonic() + seconds
        while not wanted(states := self.states(files)):
            logs = "\n".join(path.read_text() for path in files.root.glob("logs/*/*.log"))
            assert time.monotonic() < deadline, f"{states}\n{logs}"
            time.sleep(0.3)
        return states
