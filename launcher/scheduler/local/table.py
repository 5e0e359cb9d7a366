"""The job table: SQLite in WAL mode, the only state that the client, the supervisor, stepd and scontrol share."""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from launcher.errors import SchedulerError
from launcher.scheduler.local.script import Request

SCHEMA = 1
NEVER = "DependencyNeverSatisfied"

_TABLE = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,   -- SLURM_JOB_ID; never given twice
    array_id INTEGER,                       -- of the whole array, the id of its first task
    task INTEGER,
    array TEXT NOT NULL DEFAULT '{}',       -- limit, count, min, max of the array
    name TEXT NOT NULL,
    comment TEXT NOT NULL,
    request TEXT NOT NULL,                  -- script.Request
    directory TEXT NOT NULL,                -- of the submission
    state TEXT NOT NULL DEFAULT 'PENDING',  -- a name of states.State
    reason TEXT NOT NULL DEFAULT 'None',
    asked TEXT NOT NULL DEFAULT '',         -- of a running job: cancel or requeue
    allocation TEXT NOT NULL DEFAULT '{}',  -- node index -> GPU indices on this computer
    exit_code INTEGER,
    signal INTEGER,
    restarts INTEGER NOT NULL DEFAULT 0,
    submitted REAL NOT NULL,                -- Unix seconds
    started REAL,
    ended REAL
);
CREATE INDEX jobs_state ON jobs(state);
CREATE INDEX jobs_comment ON jobs(comment);
CREATE INDEX jobs_array ON jobs(array_id);
"""


@dataclass(frozen=True)
class Row:
    """One job of the table; a task of an array is a job."""

    id: int
    array_id: int | None
    task: int | None
    array: dict[str, int]
    name: str
    comment: str
    request: Request
    directory: str
    state: str
    reason: str
    asked: str
    allocation: dict[int, list[int]]
    exit_code: int | None
    signal: int | None
    restarts: int
    submitted: float
    started: float | None
    ended: float | None

    @property
    def job_id(self) -> str:
        return str(self.id) if self.array_id is None else f"{self.array_id}_{self.task}"

    @property
    def submission(self) -> int:
        """The number under which script and environment are kept: one for all tasks of an array."""
        return self.id if self.array_id is None else self.array_id


class Table:
    """A connection to the table in `state_dir`, which is made where it is missing. Not for use by several threads."""

    def __init__(self, state_dir: str) -> None:
        os.makedirs(state_dir, mode=0o700, exist_ok=True)
        with open(os.path.join(state_dir, "table.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # SQLite does not wait for others while it changes to WAL
            self._sql = sqlite3.connect(os.path.join(state_dir, "jobs.sqlite"), timeout=60, isolation_level=None)
            self._sql.row_factory = sqlite3.Row
            version = self._sql.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._sql.execute("PRAGMA journal_mode=WAL")
                self._sql.executescript(f"BEGIN; {_TABLE} PRAGMA user_version={SCHEMA}; COMMIT;")
        self._sql.execute("PRAGMA synchronous=NORMAL")
        if version not in (0, SCHEMA):
            raise SchedulerError(
                f"its job table has version {version}, this swiftlaunch knows {SCHEMA}",
                where=state_dir,
                hint="use the version of swiftlaunch that made it, or another state folder",
            )

    def close(self) -> None:
        self._sql.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction, alone with the table from its start."""
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")

    def insert(self, request: Request, directory: str, tasks: Sequence[int] | None, limit: int) -> list[int]:
        """New pending jobs, one or one per task of an array, with adjacent ids. Inside `writing`."""
        array = {} if tasks is None else {"limit": limit, "count": len(tasks), "min": min(tasks), "max": max(tasks)}
        text = json.dumps(asdict(request))
        ids: list[int] = []
        for task in (None,) if tasks is None else tasks:
            cursor = self._sql.execute(
                "INSERT INTO jobs (array_id, task, array, name, comment, request, directory, submitted)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    ids[0] if ids else None,
                    task,
                    json.dumps(array),
                    request.name,
                    request.comment,
                    text,
                    directory,
                    time.time(),
                ),
            )
            assert cursor.lastrowid is not None
            ids.append(cursor.lastrowid)
        if tasks is not None:
            self._sql.execute("UPDATE jobs SET array_id = id WHERE id = ?", (ids[0],))
        return ids

    def by_ids(self, ids: Sequence[str]) -> dict[str, list[Row]]:
        """The jobs of each id, in one query: "12" a job, or all tasks of array 12; "12_3" one task."""
        numbers = sorted({int(job_id.partition("_")[0]) for job_id in ids if job_id.partition("_")[0].isdigit()})
        rows = self._rows(
            "WHERE id IN (SELECT value FROM json_each(:ids)) OR array_id IN (SELECT value FROM json_each(:ids))",
            {"ids": json.dumps(numbers)},
        )
        found: dict[str, list[Row]] = {job_id: [] for job_id in ids}
        for row in rows:
            for job_id in {row.job_id, str(row.id), str(row.array_id)} & found.keys():
                found[job_id].append(row)
        return found

    def by_comment(self, comment: str) -> list[Row]:
        return self._rows("WHERE comment = :comment", {"comment": comment})

    def by_start_of_comment(self, text: str) -> list[Row]:
        return self._rows("WHERE substr(comment, 1, length(:text)) = :text", {"text": text})

    def by_id(self, number: int) -> Row:
        """Raises KeyError."""
        rows = self._rows("WHERE id = :id", {"id": number})
        if not rows:
            raise KeyError(number)
        return rows[0]

    def unfinished(self) -> list[Row]:
        """Pending and running jobs in the order of their ids."""
        return self._rows("WHERE state IN ('PENDING', 'RUNNING')", {})

    def running(self) -> list[Row]:
        return self._rows("WHERE state = 'RUNNING'", {})

    def version(self) -> int:
        """A number that changes when another process has written to the table."""
        return int(self._sql.execute("PRAGMA data_version").fetchone()[0])

    def has_work(self) -> bool:
        """Whether a supervisor has something to do or to wait for."""
        found = self._sql.execute(
            "SELECT 1 FROM jobs WHERE state = 'RUNNING' OR (state = 'PENDING' AND reason <> ?) LIMIT 1", (NEVER,)
        )
        return found.fetchone() is not None

    def submission_needed(self, number: int) -> bool:
        """Whether a job that was submitted under this number may run (again)."""
        found = self._sql.execute(
            "SELECT 1 FROM jobs WHERE (id = :id OR array_id = :id) AND state IN ('PENDING', 'RUNNING') LIMIT 1",
            {"id": number},
        )
        return found.fetchone() is not None

    def _rows(self, where: str, values: dict[str, Any]) -> list[Row]:
        return [_row(row) for row in self._sql.execute(f"SELECT * FROM jobs {where} ORDER BY id", values)]  # noqa: S608

    def asked(self, number: int) -> str:
        row = self._sql.execute("SELECT asked FROM jobs WHERE id = ?", (number,)).fetchone()
        return str(row[0]) if row else "cancel"

    def cancel(self, number: int) -> None:
        """A pending job is cancelled at once, a running one by its stepd."""
        with self.writing():
            self.reject(number, "None")
            self._sql.execute("UPDATE jobs SET asked = 'cancel' WHERE id = ? AND state = 'RUNNING'", (number,))

    def ask_requeue(self, number: int) -> bool:
        """Have a running job run again. False if it does not run or is being cancelled."""
        with self.writing():
            changed = self._sql.execute(
                "UPDATE jobs SET asked = 'requeue' WHERE id = ? AND state = 'RUNNING' AND asked <> 'cancel'", (number,)
            )
        return changed.rowcount == 1

    def set_reason(self, number: int, reason: str) -> None:
        self._sql.execute("UPDATE jobs SET reason = ? WHERE id = ? AND state = 'PENDING'", (reason, number))

    def start(self, number: int, allocation: dict[int, list[int]]) -> bool:
        """Pending -> running. False if it was cancelled meanwhile."""
        changed = self._sql.execute(
            "UPDATE jobs SET state = 'RUNNING', reason = 'None', asked = '', allocation = ?, started = ?,"
            " ended = NULL, exit_code = NULL, signal = NULL WHERE id = ? AND state = 'PENDING'",
            (json.dumps(allocation), time.time(), number),
        )
        return changed.rowcount == 1

    def reject(self, number: int, reason: str) -> None:
        """Pending -> cancelled."""
        self._sql.execute(
            "UPDATE jobs SET state = 'CANCELLED', reason = ?, ended = ? WHERE id = ? AND state = 'PENDING'",
            (reason, time.time(), number),
        )

    def finish(
        self, number: int, state: str, *, ended: float, exit_code: int | None, signal: int | None, reason: str
    ) -> None:
        """Running -> a state that is final."""
        self._sql.execute(
            "UPDATE jobs SET state = ?, ended = ?, exit_code = ?, signal = ?, reason = ?, asked = ''"
            " WHERE id = ? AND state = 'RUNNING'",
            (state, ended, exit_code, signal, reason, number),
        )

    def requeue(self, number: int, reason: str) -> None:
        """Running -> pending, one restart more."""
        self._sql.execute(
            "UPDATE jobs SET state = 'PENDING', reason = ?, restarts = restarts + 1, asked = '', allocation = '{}',"
            " started = NULL, ended = NULL, exit_code = NULL, signal = NULL WHERE id = ? AND state = 'RUNNING'",
            (reason, number),
        )


def _row(row: sqlite3.Row) -> Row:
    values = dict(row)
    request = json.loads(values["request"])
    request["dependencies"] = tuple((kind, job_id) for kind, job_id in request["dependencies"])
    values["request"] = Request(**request)
    values["array"] = json.loads(values["array"])
    values["allocation"] = {int(node): gpus for node, gpus in json.loads(values["allocation"]).items()}
    return Row(**values)
