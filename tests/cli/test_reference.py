"""docs/cli.md is the help of every command, and the help says what a person needs."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from launcher.cli import COMMANDS, root
from launcher.cli.reference import contexts, page

pytestmark = pytest.mark.unit

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
ALL = list(contexts(click.Context(root, info_name="swiftlaunch")))


def test_the_page_is_current() -> None:
    assert DOCS.read_text(encoding="utf-8") == page(), "run: python -m launcher.cli.reference > docs/cli.md"


@pytest.mark.parametrize("context", ALL, ids=lambda context: context.command_path)
def test_every_command_and_option_is_documented(context: click.Context) -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"# {context.command_path}\n" in text
    section = text.split(f"# {context.command_path}\n")[1].split("\n## ")[0].split("\n### ")[0]
    for parameter in context.command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert all(name in section for name in parameter.opts)
        else:
            assert parameter.make_metavar(context).strip("[].") in section


@pytest.mark.parametrize("context", ALL, ids=lambda context: context.command_path)
def test_help_has_a_summary_and_an_example(context: click.Context) -> None:
    text = context.get_help()
    assert "Example:" in text or "Examples:" in text
    assert f"  {context.command_path}" in text
    summary = (context.command.help or "").split("\n\n")[0]
    assert "\n" not in summary
    assert summary.endswith(".")
    assert len(summary) <= 64 or context.command is root


def test_the_table_has_the_summaries_of_the_commands() -> None:
    commands = {name: root.get_command(click.Context(root), name) for name in COMMANDS}
    summaries = {name: (command.help or "").split("\n")[0] for name, command in commands.items() if command}
    assert summaries == COMMANDS
