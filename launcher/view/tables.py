"""Plain lists: sites, environments, models, checks."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_rows(names: Sequence[str], rows: Sequence[Sequence[str | Text]], console: Console) -> None:
    """Print rows under their column names; a long cell goes on in the next line."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    console.print(table)


def level_rows(findings: Sequence[tuple[str, str, str, str]]) -> list[list[str | Text]]:
    """Rows of findings; the level (ok, warn or fail) that each begins with gets its colour."""
    styles = {"ok": "green", "warn": "yellow"}
    return [[Text(level, style=styles.get(level, "bold red")), *words] for level, *words in findings]
