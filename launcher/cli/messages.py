"""What goes to the terminal besides views: messages and errors on stderr, JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from launcher.errors import SwiftlaunchError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Interrupted(Exception):
    """Ctrl-C in a command that had done something; the text says what exists now."""

    @staticmethod
    def show(interruption: BaseException) -> int:
        """One line on stderr; returns the exit code."""
        text = str(interruption) if isinstance(interruption, Interrupted) else "nothing was changed"
        click.echo(f"interrupted: {text}", err=True)
        return EXIT_INTERRUPTED


@contextmanager
def if_interrupted(text: str) -> Iterator[None]:
    """Within this block a Ctrl-C ends the command with `text`: what exists now, and what to type next."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(text) from None


def say(text: str) -> None:
    """A message for the person at the terminal."""
    click.echo(text, err=True)


def report(error: SwiftlaunchError) -> None:
    """Every fault of an error: `error: where: what`, and below it what to do next."""
    for fault in error.faults:
        where = f"{fault.where}: " if fault.where else ""
        say(f"{_coloured('error:', 'red')} {where}{fault.message}")
        if fault.hint:
            say(f"{_coloured('hint:', 'cyan')} {fault.hint}")


def print_json(data: Any) -> None:
    """JSON on stdout, for programs."""
    click.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def _coloured(text: str, colour: str) -> str:
    plain = os.environ.get("NO_COLOR") or not sys.stderr.isatty()
    return text if plain else click.style(text, fg=colour, bold=True)
