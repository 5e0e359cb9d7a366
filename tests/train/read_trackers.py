"""What the trackers' own readers find in a run's folder, as one line of JSON: read_trackers.py RUN_DIR."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Series = dict[str, dict[str, float]]  # name -> step -> value


def main(folder: Path) -> None:
    found: dict[str, Any] = {"tensorboard": tensorboard(folder / "tensorboard")}
    found |= wandb(folder / "wandb")
    found |= mlflow(folder / "mlflow")
    print(json.dumps(found))


def tensorboard(folder: Path) -> Series:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: {str(event.step): event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def wandb(folder: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("offline-run-*/run-*.wandb")
    series: Series = {}
    run: Any = None
    for data in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            run = record.run
        if record.HasField("history"):
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            step = str(row.pop("_step", record.history.step.num))
            for name, value in row.items():
                assert step not in series.setdefault(name, {}), f"{name} of step {step} is there twice"
                series[name][step] = value
    return {
        "wandb": series,
        "wandb_run": {"id": run.run_id, "name": run.display_name, "project": run.project},
        "wandb_config": sorted(item.key for item in run.config.update if not item.key.startswith("_")),
    }


def wandb_records(data: bytes) -> Iterator[bytes]:
    """What `wandb sync` reads: after seven bytes LevelDB's log format (doc/log_format.md of google/leveldb).

    The library's own reader is in its program wandb-core, and no part of its Python package.
    """
    assert data[:4] == b":W&B"
    block, head, whole, first, middle, last = 32768, 7, 1, 2, 3, 4
    at, parts = head, b""
    while at + head <= len(data):
        if block - at % block < head:
            at += block - at % block
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        piece = data[at + head : at + head + length]
        assert len(piece) == length
        at += head + length
        parts = piece if kind in (whole, first) else parts + piece
        assert kind in (whole, first, middle, last)
        if kind in (whole, last):
            yield parts


def mlflow(folder: Path) -> dict[str, Any]:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name("observed")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["train.method"] == "sft"
    series: Series = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        series[name] = {str(metric.step): metric.value for metric in history}
        assert len(series[name]) == len(history), f"a step of {name} is there twice"
    return {"mlflow": series, "mlflow_run": [run.info.status, experiment.name, run.info.run_name]}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
