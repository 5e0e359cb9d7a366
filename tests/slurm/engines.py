"""A user of a cluster who runs the real engines there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launcher.rundir import RunDir
from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes/sft-smollm2-cpu.toml"
SHORT = (
    "train.steps=4",
    "train.warmup_steps=1",
    "train.checkpoint.every_steps=2",
    "evaluate.limit=4",
    "quantize.calibration_samples=8",
)
# The nodes claim 16 CPUs each; what the machine has is shared by all of them.
SITE = """\
name = "cluster"
description = "four nodes on this machine, with engines"
scheduler = "slurm"
runs_dir = {runs}
models_dir = {models}
environments_dir = {environments}
[node]
count = 4
cpus = 2
memory = "16000M"
[network]
interface = "lo"
rendezvous_host = "127.0.0.1"
[[partitions]]
name = {partition}
time_limit = "1h"
[environments]
"""


class EngineUser:
    """Types `swiftlaunch` in the repository's folder; the engines are those that `make engines` built."""

    def __init__(self, root: Path, cluster: Cluster, *, partition: str = "main") -> None:
        self.root = root
        self.cluster = cluster
        self.site = root / "cluster.toml"
        self._partition = partition
        self.move_runs(root / "runs")
        self.environ = {
            **{name: value for name, value in cluster.environ().items() if not name.startswith("PYTEST")},
            **{"XDG_STATE_HOME": str(root / "state"), "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
        }

    @property
    def train_python(self) -> str:
        """The interpreter of the train environment. Fails where it was not built."""
        return os.environ["SWIFTLAUNCH_TEST_TRAIN_PYTHON"]

    def move_runs(self, runs: Path) -> None:
        """From now on runs are kept there."""
        self.runs = runs
        model = Path(os.environ["SWIFTLAUNCH_TEST_MODEL"])
        values = {"runs": runs, "models": model.parent, "environments": self.root, "partition": self._partition}
        environments = ""
        for role in ("train", "transformers", "gptq"):
            if python := os.environ.get(f"SWIFTLAUNCH_TEST_{role.upper()}_PYTHON"):
                environments += f'{role} = {{ kind = "venv", python = {json.dumps(python)} }}\n'
        self.site.write_text(SITE.format(**{key: json.dumps(str(path)) for key, path in values.items()}) + environments)

    def swiftlaunch(self, *words: str) -> str:
        finished = subprocess.run(
            [sys.executable, "-m", "launcher", *words],
            env=self.environ,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert finished.returncode == 0, f"{words}: {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
        return finished.stdout

    def submit(self, recipe: Path, *settings: str) -> RunDir:
        words = [word for setting in settings for word in ("--set", setting)]
        run_id = self.swiftlaunch("submit", str(recipe), "--site", str(self.site), *words).strip()
        return RunDir(self.runs / run_id)

    def submit_demo(self, *settings: str) -> RunDir:
        return self.submit(DEMO, *settings)

    def status(self, files: RunDir) -> dict[str, Any]:
        return dict(json.loads(self.swiftlaunch("status", files.root.name, "--json")))

    def until_ended(self, files: RunDir, seconds: float) -> dict[str, Any]:
        """The status of a run that has ended."""
        deadline = time.monotonic() + seconds
        while (status := self.status(files))["state"] in ("PENDING", "RUNNING"):
            assert time.monotonic() < deadline, json.dumps(status, indent=2)
            time.sleep(2)
        return status
