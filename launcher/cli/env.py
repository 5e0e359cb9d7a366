"""`swiftlaunch env`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from launcher.cli.messages import if_interrupted, print_json, say
from launcher.cli.parameters import json_option, site_option
from launcher.cli.site_choice import chosen_site

if TYPE_CHECKING:
    from launcher.environments import EnvironmentState
    from launcher.sites import Site


@click.group(name="env", invoke_without_command=True)
@click.pass_context
def command(context: click.Context) -> None:
    """Software environments of the stages: list, build, remove.

    Engines pin different versions of torch, so each kind of stage (its role) has an environment of its own, named
    by the site. Those of kind "locked" are built here from lock files; the others belong to you or to the centre.

    \b
    Example:
      swiftlaunch env sync train transformers
    """
    if context.invoked_subcommand is None:
        context.invoke(list_environments)


@command.command(name="list")
@site_option
@json_option
def list_environments(site_name: str = "", as_json: bool = False) -> None:
    """List the site's environments and whether they can be used.

    \b
    Example:
      swiftlaunch env list --site local
    """
    site = chosen_site(site_name).site
    found = [_status(site, role) for role in site.environments]
    if as_json:
        print_json([asdict(state) for state in found])
        return
    from launcher.units import show_mib
    from launcher.view.console import data_console
    from launcher.view.tables import show_rows

    rows = [
        [
            state.role,
            state.kind,
            state.broken or ("ready" if state.present else f"missing: swiftlaunch env sync {state.role}"),
            show_mib(state.size_mib) if state.size_mib else "-",
            state.python,
        ]
        for state in found
    ]
    show_rows(["role", "kind", "state", "size", "python"], rows, data_console())


@command.command(name="sync")
@click.argument("roles", metavar="ROLE...", nargs=-1, required=True)
@site_option
def sync(roles: tuple[str, ...], site_name: str) -> None:
    """Build locked environments.

    Goes on with a build that was interrupted. Does nothing for those that are there already. Prints the interpreter
    of each.

    \b
    Example:
      swiftlaunch env sync train transformers
    """
    from launcher import environments
    from launcher.view.console import message_console
    from launcher.view.progress import progress

    site = chosen_site(site_name).site
    for role in roles:
        environments.lock_path(site, role)  # a wrong name is told before the first long build
    for role in roles:
        again = f"what is installed stays; `swiftlaunch env sync {role}` goes on"
        with if_interrupted(again), progress(role, message_console()) as show:
            state = environments.sync(site, role, show)
        click.echo(state.python)


@command.command(name="remove")
@click.argument("role")
@site_option
def remove(role: str, site_name: str) -> None:
    """Remove a locked environment from disk.

    \b
    Example:
      swiftlaunch env remove vllm
    """
    from launcher import environments
    from launcher.units import show_mib

    freed = environments.remove(chosen_site(site_name).site, role)
    say(f"removed {role}: {show_mib(freed)} free" if freed else f"{role} was not there")


def _status(site: Site, role: str) -> EnvironmentState:
    """What is there for a role; one that has no lock file is broken, and the others are still listed."""
    from launcher import environments
    from launcher.errors import UserError

    try:
        return environments.status(site, role)
    except UserError as error:
        kind = site.environments[role].kind
        return environments.EnvironmentState(role, kind, python="", present=False, broken=error.message)
