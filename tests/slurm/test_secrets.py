"""Secrets that a recipe names reach the worker alone: no script, argv, log, event, nor Slurm's own records."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.record import read_events
from launcher.rundir import RunDir
from tests.chain.conftest import GOOD
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ClusterUser

pytestmark = pytest.mark.slurm

SECRETS = {
    "WANDB_API_KEY": "a-key $(touch /tmp/x) `id` 'of \"Weights",
    "HF_TOKEN": "hf_SecretOfTheHub0123456789",
}
WORKER = """
import hashlib, os, time

def run(context):
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        context.event("metric", name=name, value=hashlib.sha256(os.environ[name].encode()).hexdigest())
    while not (context.files.stage(context.stage.name) / "go").exists():
        time.sleep(0.05)
    context.finish(metrics={})
"""


def everything_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            try:
                yield str(path), path.read_bytes()
            except FileNotFoundError:  # Slurm's daemons replace theirs
                continue


def leaks(user: ClusterUser, files: RunDir, job_id: str) -> dict[str, str]:
    """Where a secret's value can be read -> its name, besides the one file that is made for it."""
    cluster = user.cluster
    texts: list[tuple[str, bytes]] = [*everything_in(user.root), *everything_in(cluster.dir)]
    for words in (
        ("scontrol", "-d", "show", "job", job_id),
        ("scontrol", "write", "batch_script", job_id, "-"),
        ("sacct", "-j", job_id, "--batch-script"),
        ("sacct", "-j", job_id, "--env-vars"),
        ("sacct", "-j", job_id, "-P", "-o", "ALL"),
    ):
        deadline = time.monotonic() + 20
        while not (answer := cluster.command(*words)).stdout.strip():  # accounting is late
            assert time.monotonic() < deadline, f"{words} {answer.stderr}"
            time.sleep(0.2)
        texts.append((" ".join(words), answer.stdout.encode()))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            texts.append((f"argv of {process.name}", (process / "cmdline").read_bytes().replace(b"\0", b" ")))
        except OSError:
            continue
    return {
        where: name
        for where, text in texts
        for name, value in SECRETS.items()
        if value.encode() in text and where != str(files.secrets)
    }


def test_secrets_reach_the_worker_alone(cluster: Cluster, tmp_path: Path) -> None:
    user = ClusterUser(tmp_path, cluster)
    user.write(GOOD.replace("[train]", '[env]\nsecrets = ["WANDB_API_KEY", "HF_TOKEN"]\n[train]'))
    user.environ |= SECRETS
    files = user.submit({})
    for worker in ("train", "evaluate"):
        (files.code / f"launcher/work/{worker}.py").write_text(WORKER)
    job_id = user.jobs(files)["baseline"][0]
    cluster.command("scontrol", "release", job_id)
    deadline = time.monotonic() + 60
    told: dict[str, str] = {}
    while len(told) < len(SECRETS):
        assert time.monotonic() < deadline, files.batch_log("baseline").read_text()
        told = {e["name"]: e["value"] for e in read_events(files.events) if e["kind"] == "metric"}
        time.sleep(0.1)
    try:
        assert told == {name: hashlib.sha256(value.encode()).hexdigest() for name, value in SECRETS.items()}
        assert files.secrets.stat().st_mode & 0o777 == 0o600
        assert leaks(user, files, job_id) == {}  # while it runs
        (files.stage("baseline") / "go").touch()
        user.until(files, lambda states: states["baseline"] == "COMPLETED")
        assert leaks(user, files, job_id) == {}
        user.run("cancel", files.root.name)
        user.environ["HF_TOKEN"] = "another one"
        user.run("resume", files.root.name)  # from a shell that has them, too
        assert leaks(user, files, user.jobs(files)["train"][-1]) == {}
    finally:
        cluster.command("scancel", *(ids[-1] for ids in user.jobs(files).values()))
