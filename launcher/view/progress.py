"""Progress of one long call (an installation, a download): a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

QUIET_SECONDS = 10.0

OnProgress = Callable[[int, int, str], None]  # done, total (0: not known), what


@contextmanager
def progress(title: str, console: Console) -> Iterator[OnProgress]:
    """A function that shows how far the call in this block is."""
    if console.is_terminal and not console.is_dumb_terminal:
        with _bar(title, console) as show:
            yield show
    else:
        yield _lines(title, console)


@contextmanager
def _bar(title: str, console: Console) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.fields[title]}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        task: TaskID = bars.add_task("", total=None, title=title)

        def show(done: int, total: int, what: str) -> None:
            bars.update(task, completed=done, total=total or None, description=what)

        yield show


def _lines(title: str, console: Console) -> OnProgress:
    last_line = 0.0

    def show(done: int, total: int, what: str) -> None:
        nonlocal last_line
        now = time.monotonic()
        if last_line and now - last_line < QUIET_SECONDS:
            return
        last_line = now
        share = f" {100 * done // total} %" if total else ""
        console.print(Text(f"{title}{share}  {what}"), soft_wrap=True)

    return show
