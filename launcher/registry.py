"""The registry: an SQLite index of runs. Run directories are the truth; this file can be deleted and rebuilt."""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import SwiftlaunchError, UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
  run_id TEXT PRIMARY KEY, name TEXT NOT NULL, run_dir TEXT NOT NULL, site TEXT NOT NULL,
  scheduler TEXT NOT NULL, submitted REAL NOT NULL
)
"""


def registry_path(state_dir: Path) -> Path:
    """The index of runs, beside the local scheduler's state folder."""
    return state_dir.parent / "registry.sqlite"


@dataclass(frozen=True)
class RunRow:
    """One run as the index knows it. `submitted` is in Unix seconds."""

    run_id: str
    name: str
    run_dir: Path
    site: str
    scheduler: str
    submitted: float


class Registry:
    """The index at `path`, made when it is first written to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, row: RunRow) -> None:
        """Insert or replace a run."""
        with self._open() as database:
            _insert(database, row)

    def remove(self, run_id: str) -> None:
        """Forget a run; its directory is not touched."""
        with self._open() as database:
            database.execute("DELETE FROM runs WHERE run_id = ?", (run_id,))

    def runs(self, limit: int = 0) -> list[RunRow]:
        """Runs, newest first; all of them with limit 0."""
        if not self.path.exists():
            return []
        with self._open() as database:
            rows = database.execute(
                "SELECT run_id, name, run_dir, site, scheduler, submitted FROM runs "
                "ORDER BY submitted DESC, run_id DESC LIMIT ?",
                (limit or -1,),
            ).fetchall()
        return [RunRow(row[0], row[1], Path(row[2]), row[3], row[4], row[5]) for row in rows]

    def find(self, text: str) -> RunRow:
        """The run that `text` means: an id, a unique prefix of one, a name (its newest run) or "latest".

        Raises UserError where none or several match.
        """
        rows = self.runs()
        if text == "latest" and rows:
            return rows[0]
        exact = [row for row in rows if row.run_id == text] or [row for row in rows if row.name == text][:1]
        if exact:
            return exact[0]
        matches = [row for row in rows if text and row.run_id.startswith(text)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            shown = ", ".join(row.run_id for row in matches[:5])
            raise UserError(f"{text!r} is the start of {len(matches)} run ids", hint=f"say more of it: {shown}")
        close = difflib.get_close_matches(text, [row.run_id for row in rows] + [row.name for row in rows], n=1)
        hint = f"did you mean {close[0]}?" if close else "`swiftlaunch runs` lists them"
        raise UserError(f"no run {text!r}", hint=hint)

    def rebuild(self, roots: Sequence[Path]) -> int:
        """Read every run directory under `roots` again; returns how many runs were found."""
        rows = [row for root in roots for row in _rows_on_disk(root)]
        with self._open() as database:
            database.execute("DELETE FROM runs")
            for row in rows:
                _insert(database, row)
        return len(rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            database = sqlite3.connect(self.path, timeout=30.0)
            try:
                database.execute(_SCHEMA)
                with database:
                    yield database
            finally:
                database.close()
        except sqlite3.DatabaseError as error:
            raise SwiftlaunchError(
                f"the index of runs cannot be used: {error}",
                where=str(self.path),
                hint="if it is damaged, delete it; `swiftlaunch runs --rebuild` makes it again",
            ) from error


def _insert(database: sqlite3.Connection, row: RunRow) -> None:
    database.execute(
        "INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?)",
        (row.run_id, row.name, str(row.run_dir), row.site, row.scheduler, row.submitted),
    )


def _rows_on_disk(root: Path) -> Iterator[RunRow]:
    for path in sorted(root.glob("[!.]*/plan.json")):  # with a dot: a submission that was cut while it was written
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            yield RunRow(
                plan["run_id"], plan["name"], path.parent, plan["site"], plan["scheduler"], path.stat().st_mtime
            )
        except (ValueError, KeyError, OSError):
            continue  # not a run of ours, or one that was cut while it was written
