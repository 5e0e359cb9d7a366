"""The command line. A command's module is imported when the command is asked for, and not before."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from launcher import __version__
from launcher.cli.messages import Interrupted, report
from launcher.errors import SwiftlaunchError, UserError

# The table: each name is a module of this package whose `command` is the command, with the summary of its help.
COMMANDS = {
    "init": "Write a commented recipe to start from.",
    "data": "Check a recipe's data and show how much there is.",
    "plan": "Show what a recipe would run, and what it would ask for.",
    "render": "Write the job scripts and plan.json without submitting them.",
    "diff": "Compare a run, or a recipe, with what a recipe gives now.",
    "submit": "Submit a recipe: a job for every stage.",
    "runs": "List runs, newest first, with how each of them stands.",
    "status": "Show how a run stands, a line for each stage.",
    "show": "Show everything about a run.",
    "logs": "Print a stage's log.",
    "metrics": "Show what training measured, step by step.",
    "usage": "Show what a run used, and what to ask for next time.",
    "cancel": "Cancel a run, or the named stages of it.",
    "resume": "Submit again what has not succeeded and is not in the queue.",
    "resubmit": "Submit again what has failed, and only that.",
    "sweep": "Show the points of a sweep, the best first.",
    "serve": "Serve again what a run made.",
    "export": "Export a checkpoint as a Hugging Face folder.",
    "models": "Models: list the known ones, show one, fetch one.",
    "sites": "List the sites, and say which one is in use and why.",
    "env": "Software environments of the stages: list, build, remove.",
    "doctor": "Check whether a site works from here.",
    "schema": "Print the JSON schema of recipes.",
}


class CommandTable(click.Group):
    """A group that finds its commands in `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands, in the order in which a person meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its module imported now; None for an unknown one."""
        if cmd_name not in COMMANDS:
            return None
        found = importlib.import_module(f"launcher.cli.{cmd_name}").command
        if not isinstance(found, click.Command):
            raise TypeError(f"launcher.cli.{cmd_name}.command is no command")
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in the help, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; an unknown name gets a guess at what was meant."""
        if args[0] in COMMANDS or args[0].startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        import difflib

        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        hint = f"did you mean `swiftlaunch {close[0]}`?" if close else "`swiftlaunch --help` lists the commands"
        raise UserError(f"no command {args[0]!r}", hint=hint)


@click.group(
    cls=CommandTable,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="swiftlaunch %(version)s")
@click.pass_context
def root(context: click.Context) -> None:
    """Launch LLM post-training on Slurm or on this machine: one recipe, one command.

    A recipe says what to train, a site says where. `plan` shows what would run, `submit` runs it: train, export,
    evaluate, quantize and serve are jobs that wait for each other, and nothing has to stay logged in.

    stdout is data and messages go to stderr; commands that read take --json.

    \b
    Exit codes:
      0    done
      1    something outside failed: a stage, the scheduler, a disk (for `diff`: there are differences)
      2    the command, the recipe or the site file is wrong; nothing was changed
      130  interrupted with Ctrl-C; a line says what exists now

    \b
    Example:
      swiftlaunch init my-recipe.toml
      swiftlaunch plan my-recipe.toml
      swiftlaunch submit my-recipe.toml --follow
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code. A bug leaves as an exception, traceback and all."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a "?" for it
    try:
        with root.make_context("swiftlaunch", list(arguments)) as context:
            code = root.invoke(context)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (Interrupted, KeyboardInterrupt, click.Abort) as interruption:
        return Interrupted.show(interruption)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "swiftlaunch"
        report(UserError(error.format_message(), hint=f"`{path} --help` shows how to call it"))
        return UserError.exit_code
    except click.ClickException as error:
        report(SwiftlaunchError(error.format_message()))
        return SwiftlaunchError.exit_code
    except SwiftlaunchError as error:
        report(error)
        return error.exit_code
    except BrokenPipeError:
        # the reader (head, less) has what it wanted; Python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        report(SwiftlaunchError(str(error.strerror), where=str(error.filename)))  # a disk, a home, a permission
        return SwiftlaunchError.exit_code


def main() -> NoReturn:
    """The entry point of `swiftlaunch`."""
    if "_SWIFTLAUNCH_COMPLETE" in os.environ:  # a shell asks what could come next
        root.main(prog_name="swiftlaunch")
    sys.exit(run(sys.argv[1:]))
