"""Events: what happened in a run, as JSON lines that are only ever appended.

One file per stage, attempt and rank, so no two processes write to the same file on a shared file system.
Kinds and their fields (besides `time` in Unix seconds, `kind`, `stage`, `attempt`, `rank`, and `group` in a stage
that has groups):

    attempt_started  job_id, host, pid, world_size, versions {package: version}
    resumed          step
    step             step, steps, seconds, loss, grad_norm, learning_rate, tokens_per_second, mfu, and parts of the
                     seconds: {data,compute,pipeline,reference,exchange,optimizer,checkpoint}_seconds
    ranks            step, steps (that it is over), memory_rank, memory_node, resident_mib, allocated_mib,
                     reserved_mib; with several ranks: slow_rank, slow_node, slow_seconds, usual_seconds, slowdown
    spike            step, figure (loss | grad_norm), value, samples [ids]; usual, limit, stops (bool) of a number
    tracking         tracker, place, trouble   where a tracker writes; "" and why once it does not
    progress         done, total, unit         anything that is not an optimizer step; a total of 0 is not known
    data             rows, samples, tokens, rows_cut, rows_left_out, left_out [ids], turns_rewritten,
                     lengths (lengths.Lengths); when packed: packs, packing_efficiency (0 to 1)
    metric           name, value
    resharded        from, to                  the layouts of the checkpoint and of this attempt, where they differ
    replanned        earlier (file of the plan before), changes {TOML path: [old, new]}; of attempt 0: no job did it
    checkpoint       step, path, bytes, seconds (until it was published), stall_seconds (in which training stood)
    ready            host, port                a server answered a real generation
    attempt_ended    outcome (completed | requeued | failed), exit_code, error, error_class
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Recorder:
    """Appends events of one rank; each is one write, so a reader sees whole lines or a cut last one."""

    def __init__(self, path: Path, *, stage: str, attempt: int, rank: int, group: str = "") -> None:
        self.path = path
        self._common = {"stage": stage, "attempt": attempt, "rank": rank, **({"group": group} if group else {})}
        path.parent.mkdir(parents=True, exist_ok=True)

    def event(self, kind: str, time: float, **fields: Any) -> None:
        """Append one event; `time` is Unix seconds. NaN and infinity are written as null."""
        line = json.dumps({"time": time, "kind": kind, **self._common, **_finite(fields)}) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, line.encode())
        finally:
            os.close(handle)


def read_events(folder: Path, *, stage: str = "", edge_bytes: int = 0) -> list[Event]:
    """All events of a run (or of one stage), by time; lines that a crash cut are left out.

    With `edge_bytes` only about so many bytes at either end of each file are read: enough for how a stage began and
    where it stands, whatever its number of steps.
    """
    events: list[Event] = []
    if folder.is_dir():
        for path in sorted(folder.glob(f"{stage or '*'}.*.*.jsonl")):
            events.extend(_lines(path, edge_bytes))
    events.sort(key=lambda event: float(event["time"]))
    return events


def _lines(path: Path, edge_bytes: int) -> Iterator[Event]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if edge_bytes and size > 2 * edge_bytes:
            data = file.read(edge_bytes)
            file.seek(size - edge_bytes)
            data += b"\n" + file.read()  # the two lines that this cuts are no JSON and fall out
        else:
            data = file.read()
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "time" in event and "kind" in event:
            yield event


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    write_text(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace a file atomically (write beside it, flush to disk, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """The JSON in a file, or None where there is no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
