"""The run directory: the one place that names every file of a run. Names only; nothing here touches the disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunDir:
    """`root` is `<site's runs_dir>/<run id>`; everything below it belongs to one run."""

    root: Path

    @property
    def unwritten(self) -> Path:
        """The name of this whole folder until everything is in it: a submission that is cut leaves no half run."""
        return self.root.with_name(f".{self.root.name}.part")

    @property
    def plan(self) -> Path:
        """The plan, written once; `launcher.plan.from_json` reads it."""
        return self.root / "plan.json"

    def earlier_plan(self, number: int) -> Path:
        """The plan that a later one has replaced, oldest from 1: `resume --set` plans what is left of a run anew."""
        return self.root / f"plan-{number}.json"

    @property
    def replanned(self) -> Path:
        """Folder of a new plan and its scripts, until they are in their places."""
        return self.root / "replanned"

    @property
    def recipe(self) -> Path:
        """The recipe as the user wrote it."""
        return self.root / "recipe.toml"

    @property
    def jobs(self) -> Path:
        """Stage -> jobs that the scheduler returned, newest last (JSON, replaced atomically)."""
        return self.root / "jobs.json"

    @property
    def sweep(self) -> Path:
        """JSON of a sweep: its points and which stages each of them has (`launcher.sweep`). Other runs have none."""
        return self.root / "sweep.json"

    @property
    def arrays(self) -> Path:
        """The job arrays of a sweep that were submitted, oldest first (JSON, replaced atomically)."""
        return self.root / "arrays.json"

    def points(self, array: int) -> Path:
        """Folder of an array's points; each has one below it, a run directory named by its array task."""
        return self.root / "points" / str(array)

    @property
    def best(self) -> Path:
        """Link to the best point's folder, made by the stage `select`: what follows is done in there."""
        return self.root / "best"

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

    @property
    def wandb(self) -> Path:
        """Where W&B's library writes."""
        return self.root / "wandb"

    @property
    def mlflow(self) -> Path:
        """An MLflow file store, where the recipe names no server."""
        return self.root / "mlflow"

    def tokens(self, run_id: str) -> Path:
        """Tokenised training data, beside the runs: all runs of the folder share it, and it can be deleted."""
        whole = run_id.partition("/")[0]  # a point of a sweep lies somewhere in the sweep's folder
        top = next((folder for folder in (self.root, *self.root.parents) if folder.name == whole), self.root)
        return top.parent / ".tokens"

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

    def submitted(self, stage: str) -> Path:
        """The function that a stage calls, pickled; its worker replaces it by the function's later state."""
        return self.stage(stage) / "submitted.pkl"

    def returned(self, stage: str, rank: int) -> Path:
        """What that function returned on a rank, or its traceback, pickled in submitit's form."""
        return self.stage(stage) / f"returned-{rank}.pkl"

    def checkpoints(self, stage: str) -> Path:
        return self.stage(stage) / "checkpoints"

    def reference(self, stage: str) -> Path:
        """Log-probabilities of the training answers before training."""
        return self.stage(stage) / "reference.json"

    def endpoint(self, stage: str) -> Path:
        """JSON of a running server: host, port, model, engine, pid. Removed when it stops."""
        return self.stage(stage) / "endpoint.json"

    def batch_log(self, stage: str) -> Path:
        """Output of the batch shell, all attempts appended (sbatch --output, --open-mode=append)."""
        return self.root / "logs" / stage / "batch.log"

    def attempt(self, stage: str, attempt: int) -> Path:
        """Logs and hand-over files of one attempt; attempts count from 1."""
        return self.root / "logs" / stage / f"attempt-{attempt}"

    def ranks(self, stage: str, attempt: int, group: str = "") -> Path:
        """What ranks leave of one attempt; of a stage with groups each group has a folder of its own."""
        return self.attempt(stage, attempt) / group

    def rank_log(self, stage: str, attempt: int, rank: int, group: str = "") -> Path:
        """stdout and stderr of one rank (srun --output=.../rank-%t.log)."""
        return self.ranks(stage, attempt, group) / f"rank-{rank}.log"

    def rendezvous(self, stage: str, attempt: int) -> Path:
        """Folder of JSON files, mode 0600: where the ranks of this attempt can be reached (see work/rendezvous.py)."""
        return self.attempt(stage, attempt) / "rendezvous"

    def failure(self, stage: str, attempt: int, rank: int, *, fatal: bool, group: str = "") -> Path:
        """JSON by a rank that failed. The job script looks for `fatal-*`: with one, no other attempt is made."""
        return self.ranks(stage, attempt, group) / f"{'fatal' if fatal else 'failure'}-{rank}.json"

    def ended_by(self, stage: str, attempt: int) -> Path:
        """Name of the group that decided how an attempt ended, by the job script of a stage with groups."""
        return self.attempt(stage, attempt) / "ended-by"

    def crashed(self, stage: str, attempt: int) -> Path:
        """Empty, made by the job script for an attempt that crashed; their number is bounded by max_attempts."""
        return self.attempt(stage, attempt) / "crashed"

    def saved(self, stage: str, attempt: int) -> Path:
        """Empty, made by a worker whose progress outlives the attempt; the job script bounds attempts without it."""
        return self.attempt(stage, attempt) / "saved"

    def preempted(self, stage: str, attempt: int) -> Path:
        """Empty, made by the job script for an attempt that the scheduler preempted."""
        return self.attempt(stage, attempt) / "preempted"

    def stacks(self, stage: str, attempt: int, rank: int, group: str = "") -> Path:
        """Where a rank was when the attempt hung."""
        return self.ranks(stage, attempt, group) / f"stacks-{rank}.txt"

    def sick(self, stage: str, attempt: int, node: str) -> Path:
        """Empty, made by a rank that failed for a fault of its node."""
        return self.attempt(stage, attempt) / f"sick-{node}"

    def excluded(self, stage: str) -> Path:
        """Nodes, a line each, that further attempts of a stage are kept away from; the job script writes it."""
        return self.stage(stage) / "excluded"

    def given_up(self, stage: str) -> Path:
        """Why the job script makes no other attempt, a line; jobs of the stage that come later end at once."""
        return self.stage(stage) / "given-up"

    def forgiven(self, stage: str) -> Path:
        """Number of the newest attempt before a `resume`; up to it the job script counts none against the stage."""
        return self.stage(stage) / "forgiven"

    def not_before(self, stage: str) -> Path:
        """Unix seconds before which the next attempt is not to begin, by the job script."""
        return self.stage(stage) / "not-before"

    def cancelled(self, stage: str) -> Path:
        """Empty, made before a stage is cancelled: its job script must not ask for another attempt."""
        return self.stage(stage) / "cancelled"

    def event_file(self, stage: str, attempt: int, rank: int, group: str = "") -> Path:
        who = f"{group}-{rank}" if group else str(rank)
        return self.events / f"{stage}.{attempt}.{who}.jsonl"
