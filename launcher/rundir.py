"""The run directory: the one place that names every file of a run. Names only; nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """`root` is `<site's runs_dir>/<run id>`; everything below it belongs to one run."""

    root: Path

    @property
    def plan(self) -> Path:
        """The plan, written once; `launcher.plan.from_json` reads it."""
        return self.root / "plan.json"

    @property
    def recipe(self) -> Path:
        """The recipe as the user wrote it."""
        return self.root / "recipe.toml"

    @property
    def jobs(self) -> Path:
        """Stage -> jobs that the scheduler returned, newest last (JSON, replaced atomically)."""
        return self.root / "jobs.json"

    @property
    def code(self) -> Path:
        """The snapshot of launcher/ that jobs import (PYTHONPATH)."""
        return self.root / "code"

    @property
    def secrets(self) -> Path:
        """Mode 0600, sourced by job scripts; only where the recipe names secrets."""
        return self.root / "secrets.sh"

    @property
    def events(self) -> Path:
        """Folder of JSON-lines files, one per stage, attempt and rank."""
        return self.root / "events"

    @property
    def tensorboard(self) -> Path:
        return self.root / "tensorboard"

    def script(self, stage: str) -> Path:
        return self.root / "scripts" / f"{stage}.sh"

    def stage(self, stage: str) -> Path:
        """What a stage keeps across attempts."""
        return self.root / "stages" / stage

    def result(self, stage: str) -> Path:
        """JSON, written atomically by the worker as its last act: it exists if and only if the stage succeeded."""
        return self.stage(stage) / "result.json"

    def artifact(self, stage: str) -> Path:
        """The folder that a stage hands on: a Hugging Face model folder for train exports and quantized models."""
        return self.stage(stage) / "artifact"

    def checkpoints(self, stage: str) -> Path:
        return self.stage(stage) / "checkpoints"

    def endpoint(self, stage: str) -> Path:
        """JSON of a running server: host, port, model, engine, pid. Removed when it stops."""
        return self.stage(stage) / "endpoint.json"

    def batch_log(self, stage: str) -> Path:
        """Output of the batch shell, all attempts appended (sbatch --output, --open-mode=append)."""
        return self.root / "logs" / stage / "batch.log"

    def attempt(self, stage: str, attempt: int) -> Path:
        """Logs and hand-over files of one attempt; attempts count from 1."""
        return self.root / "logs" / stage / f"attempt-{attempt}"

    def rank_log(self, stage: str, attempt: int, rank: int) -> Path:
        """stdout and stderr of one rank (srun --output=.../rank-%t.log)."""
        return self.attempt(stage, attempt) / f"rank-{rank}.log"

    def rendezvous(self, stage: str, attempt: int) -> Path:
        """JSON by rank 0: host and free port where the ranks of this attempt meet."""
        return self.attempt(stage, attempt) / "rendezvous.json"

    def failure(self, stage: str, attempt: int, rank: int, *, fatal: bool) -> Path:
        """JSON by a rank that failed. The job script looks for `fatal-*`: with one, no other attempt is made."""
        return self.attempt(stage, attempt) / f"{'fatal' if fatal else 'failure'}-{rank}.json"

    def crashed(self, stage: str, attempt: int) -> Path:
        """Empty, made by the job script for an attempt that crashed; their number is bounded by max_attempts."""
        return self.attempt(stage, attempt) / "crashed"

    def cancelled(self, stage: str) -> Path:
        """Empty, made before a stage is cancelled: its job script must not ask for another attempt."""
        return self.stage(stage) / "cancelled"

    def event_file(self, stage: str, attempt: int, rank: int) -> Path:
        return self.events / f"{stage}.{attempt}.{rank}.jsonl"
