"""Trackers of experiments behind one interface: TensorBoard, Weights & Biases, MLflow.

A run has one name everywhere, the run id, so that a later attempt goes on where an earlier one ended. What they are
told of the run is its resolved recipe, which names secrets and never holds one.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from launcher.work.context import Context

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # how an attempt ends
_METRICS_AT_ONCE = 500  # MLflow takes 1000
_LONGEST_VALUE = 500  # of a parameter, for MLflow's older servers


@dataclass(frozen=True)
class Point:
    """Figures of one step; `time` is Unix seconds."""

    step: int
    time: float
    figures: Mapping[str, float]


class Board(Protocol):
    """One tracker. One thread calls it; it may raise anything."""

    name: str

    def open(self) -> int:
        """Begin, or go on with what is there; returns the last step that is not to be written again.

        May be called again after a failure.
        """

    def place(self) -> str:
        """Where a person finds it: a folder or an address."""

    def write(self, point: Point) -> None:
        """Steps come in order; one step may come in several parts."""

    def flush(self) -> None:
        """Nothing more is waiting to be written at this moment."""

    def close(self, outcome: str) -> None: ...


class TensorBoard:
    """Event files in the run's folder, which each attempt writes anew: a killed one may have left them incomplete."""

    name = "tensorboard"

    def __init__(self, context: Context) -> None:
        self._folder = context.files.tensorboard
        self._writer: Any = None

    def open(self) -> int:
        from torch.utils.tensorboard import SummaryWriter

        for file in self._folder.glob("events.out.tfevents.*"):
            file.unlink()
        self._writer = SummaryWriter(str(self._folder))
        return 0

    def place(self) -> str:
        return str(self._folder)

    def write(self, point: Point) -> None:
        for name, value in point.figures.items():
            self._writer.add_scalar(name, value, point.step, walltime=point.time)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, outcome: str) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B: at the server, or in files of the run's folder for `wandb sync`.

    A server knows its last step, and gets what comes after it. Files cannot be gone on with: each attempt writes them
    anew, from the first step on, and deletes those of the attempt before.
    """

    name = "wandb"

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tracking: Mapping[str, Any] = context.options["tracking"]
        self._run: Any = None

    def open(self) -> int:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self._tracking.get("wandb_mode") == "online":
            try:
                self._start("online")
                return max(0, int(self._run.step) - 1 if self._run.resumed else 0)
            except Exception as error:  # no way out of the node, a wrong key: keep it for later
                print(
                    f"warning: tracking: wandb does not answer, going on offline: {error}", file=sys.stderr, flush=True
                )
                wandb.teardown()  # its helper process believes that this run is still going on
        for folder in self._context.files.wandb.glob(f"offline-run-*-{self._id}"):
            shutil.rmtree(folder)
        self._start("offline")
        return 0

    def place(self) -> str:
        return str(self._context.files.wandb if self._run.offline else self._run.url)

    def write(self, point: Point) -> None:
        self._run.log({**point.figures, "_timestamp": point.time}, step=point.step)

    def flush(self) -> None:
        pass

    def close(self, outcome: str) -> None:
        if outcome == STOPPED:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == FINISHED else 1)

    @property
    def _id(self) -> str:
        return self._context.plan.run_id.replace("/", "-")

    def _start(self, mode: str) -> None:
        import wandb

        plan = self._context.plan
        sweep, point, _ = plan.run_id.partition("/")
        self._context.files.wandb.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=mode,
            dir=str(self._context.files.root),
            project=self._tracking.get("project") or plan.name,
            id=self._id,
            name=plan.run_id,
            group=sweep if point else None,
            job_type=self._context.stage.name,
            config=_config(self._context),
            resume="allow" if mode == "online" else None,
            reinit="finish_previous",
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                init_timeout=60.0,
                save_code=False,
                silent=True,
                x_disable_stats=True,
            ),
        )


class MLflow:
    """A run of MLflow: at a server, or in a folder of the run. Both know the last step that they have."""

    name = "mlflow"

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tracking: Mapping[str, Any] = context.options["tracking"]
        self._uri = self._tracking.get("mlflow_uri") or context.files.mlflow.as_uri()
        self._client: Any = None
        self._run_id = ""
        self._waiting: list[Any] = []

    def open(self) -> int:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder is all that compute nodes share
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow import MlflowClient

        self._waiting.clear()
        self._client = MlflowClient(tracking_uri=self._uri)
        experiment, run_id = self._experiment(), self._context.plan.run_id
        runs = self._client.search_runs([experiment], f"tags.`swiftlaunch.run` = '{run_id}'", max_results=1)
        if not runs:
            self._run_id = self._create(experiment)
            return 0
        self._run_id = str(runs[0].info.run_id)
        self._client.update_run(self._run_id, status="RUNNING")
        return max((metric.step for metric in self._client.get_metric_history(self._run_id, "train/loss")), default=0)

    def place(self) -> str:
        return str(self._tracking.get("mlflow_uri") or self._context.files.mlflow)

    def write(self, point: Point) -> None:
        from mlflow.entities import Metric

        when = int(point.time * 1000)
        self._waiting += [Metric(name, value, when, point.step) for name, value in point.figures.items()]
        if len(self._waiting) >= _METRICS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        for start in range(0, len(self._waiting), _METRICS_AT_ONCE):
            self._client.log_batch(self._run_id, metrics=self._waiting[start : start + _METRICS_AT_ONCE])
        self._waiting.clear()

    def close(self, outcome: str) -> None:
        self.flush()
        if outcome != STOPPED:
            self._client.set_terminated(self._run_id, "FINISHED" if outcome == FINISHED else "FAILED")

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self._tracking.get("project") or self._context.plan.name
        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except MlflowException:  # another point of the sweep was faster
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def _create(self, experiment: str) -> str:
        from mlflow.entities import Param

        run_id = self._context.plan.run_id
        sweep, point, _ = run_id.partition("/")
        tags = {"swiftlaunch.run": run_id} | ({"swiftlaunch.sweep": sweep} if point else {})
        made = str(self._client.create_run(experiment, run_name=run_id, tags=tags).info.run_id)
        params = [Param(key, str(value)[:_LONGEST_VALUE]) for key, value in _flat(_config(self._context))]
        for start in range(0, len(params), 100):
            self._client.log_batch(made, params=params[start : start + 100])
        return made


def _config(context: Context) -> dict[str, Any]:
    """The recipe, and what the plan made of it."""
    plan = context.plan
    return {
        **plan.recipe,
        "plan": {
            "run_id": plan.run_id,
            "site": plan.site,
            "ranks": context.world_size,
            "layout": context.stage.layout,
            "version": plan.version,
            "git_sha": plan.git_sha,
            "model": plan.model,
        },
    }


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots and their values; keys of MLflow hold letters, digits and "_-. :/"."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        elif value is not None and value != "":
            yield f"{before}{key}", value
