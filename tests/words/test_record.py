from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path

import pytest

from launcher.record import Recorder, read_events, read_json, write_json, write_text

pytestmark = pytest.mark.unit


def test_events_of_all_ranks_come_back_by_time(tmp_path: Path) -> None:
    for rank, time in ((1, 2.0), (0, 1.0)):
        recorder = Recorder(tmp_path / f"train.1.{rank}.jsonl", stage="train", attempt=1, rank=rank)
        recorder.event("step", time, step=rank, loss=0.5)
        recorder.event("step", time + 2, step=rank + 1, loss=math.nan)
    events = read_events(tmp_path)
    assert [event["time"] for event in events] == [1.0, 2.0, 3.0, 4.0]
    assert events[0] == {
        "time": 1.0, "kind": "step", "stage": "train", "attempt": 1, "rank": 0, "step": 0, "loss": 0.5,
    }  # fmt: skip
    assert events[2]["loss"] is None


def test_infinity_is_written_as_null_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "train.1.0.jsonl"
    Recorder(path, stage="train", attempt=1, rank=0).event("metric", 1.0, value={"a": [math.inf, -math.inf, 1]})
    assert json.loads(path.read_text())["value"] == {"a": [None, None, 1]}


def test_a_cut_line_loses_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "train.1.0.jsonl"
    recorder = Recorder(path, stage="train", attempt=1, rank=0)
    recorder.event("step", 1.0, step=1)
    with path.open("a") as file:
        file.write('{"time": 2.0, "kind": "st')
    assert [event["step"] for event in read_events(tmp_path)] == [1]
    with path.open("a") as file:
        file.write('\n[1]\n{"kind": "no time"}\n')
    recorder.event("step", 3.0, step=3)
    assert [event["step"] for event in read_events(tmp_path)] == [1, 3]


def test_one_stage_alone(tmp_path: Path) -> None:
    for stage in ("evaluate", "evaluate-quantized"):
        recorder = Recorder(tmp_path / f"{stage}.1.0.jsonl", stage=stage, attempt=1, rank=0)
        recorder.event("progress", 1.0, done=1, total=1)
    assert [event["stage"] for event in read_events(tmp_path, stage="evaluate")] == ["evaluate"]
    assert read_events(tmp_path / "absent") == []


def test_json_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "jobs.json"
    assert read_json(path) is None
    write_json(path, {"b": 1, "a": "zwölf"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "zwölf",\n  "b": 1\n}\n'
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert os.listdir(path.parent) == ["jobs.json"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["note.txt"]


def test_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secrets.sh"
    write_text(path, "TOKEN=x\n", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_edges_of_a_long_file(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "train.1.0.jsonl", stage="train", attempt=1, rank=0)
    recorder.event("attempt_started", 0.0)
    for step in range(1, 2001):
        recorder.event("step", float(step), step=step)
    found = read_events(tmp_path, edge_bytes=2000)
    assert found[0]["kind"] == "attempt_started"
    assert found[-1]["step"] == 2000
    assert len(found) < 60
    assert len(read_events(tmp_path)) == 2001
