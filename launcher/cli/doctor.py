"""`swiftlaunch doctor`."""

from __future__ import annotations

from dataclasses import asdict

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, site_option
from launcher.cli.site_choice import chosen_site


@click.command(name="doctor")
@site_option
@json_option
def command(site_name: str, as_json: bool) -> int:
    """Check whether a site works from here.

    Looks at programs, folders, network, machine and environments. Each finding is ok, warn or fail, with what to do
    about it. Takes up to a minute for each environment. Exit code 1 if anything failed.

    \b
    Example:
      swiftlaunch doctor --site local
    """
    from launcher import doctor
    from launcher.view.console import data_console, message_console
    from launcher.view.progress import progress

    choice = chosen_site(site_name)
    with progress(f"site {choice.site.name}", message_console()) as on_progress:
        found = doctor.checks(choice.site, on_progress)
    if as_json:
        print_json({"site": choice.site.name, "why": choice.why, "checks": [asdict(check) for check in found]})
    else:
        from launcher.view.tables import level_rows, show_rows

        rows = level_rows([(check.level, check.name, check.found, check.advice) for check in found])
        show_rows(["", "check", "found", "what to do"], rows, data_console())
    failed = sum(check.level == doctor.FAIL for check in found)
    if failed:
        say(f"{failed} of {len(found)} checks failed")
    return 1 if failed else 0
