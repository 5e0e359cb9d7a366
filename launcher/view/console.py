"""The two consoles: data on stdout, messages on stderr. No control codes where no terminal is, or with NO_COLOR."""

from __future__ import annotations

import os
from typing import IO

from rich.console import Console

PLAIN_WIDTH = 140  # columns where nobody says how wide the output is: a pipe, a log file


def data_console() -> Console:
    """Writes to stdout."""
    return console(None)


def message_console() -> Console:
    """Writes to stderr."""
    return console(None, stderr=True)


def console(file: IO[str] | None, *, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is: names with brackets or colons are not markup."""
    made = Console(file=file, stderr=stderr, width=width, highlight=False, markup=False, emoji=False)
    if width is None and not made.is_terminal and not os.environ.get("COLUMNS"):
        made.width = PLAIN_WIDTH
    return made
