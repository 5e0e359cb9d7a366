"""The list of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.view.words import moment, run_state_text


def show_runs(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print a line for each run; `rows` are registry rows with a `state`."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    table.add_column("site", overflow="fold")
    table.add_column("submitted", no_wrap=True)
    for row in rows:
        table.add_row(Text(row["run_id"]), run_state_text(row["state"]), Text(row["site"]), moment(row["submitted"]))
    console.print(table)
