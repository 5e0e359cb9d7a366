"""`swiftlaunch sites`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from launcher.cli.messages import print_json, say
from launcher.cli.parameters import json_option, site_option
from launcher.cli.site_choice import all_sites, chosen_site


@click.command(name="sites")
@site_option
@json_option
def command(site_name: str, as_json: bool) -> None:
    """List the sites, and say which one is in use and why.

    Site files lie in ~/.config/swiftlaunch/sites (yours, they win) and in the installation (site/*.toml). The order
    of choice: --site, $SWIFTLAUNCH_SITE, a site whose `hostnames` match this host, local.

    \b
    Example:
      swiftlaunch sites
    """
    from launcher.errors import InputError
    from launcher.sites import load_site

    choice = chosen_site(site_name)
    rows: list[dict[str, Any]] = []
    for file in all_sites():
        try:
            site = load_site(file.path, Path.home())
            scheduler, description = site.scheduler, site.description
        except InputError as error:
            scheduler, description = "", f"broken: {error.faults[0].message}"
        rows.append(
            {
                "name": file.name,
                "chosen": str(file.path) == choice.site.path,
                "scheduler": scheduler,
                "description": description,
                "path": str(file.path),
                "shipped": file.shipped,
            }
        )
    if not any(row["chosen"] for row in rows):  # --site FILE: one that no name finds
        row = {"name": choice.site.name, "chosen": True, "scheduler": choice.site.scheduler, "shipped": False}
        rows.append({**row, "description": choice.site.description, "path": choice.site.path})
    if as_json:
        print_json({"chosen": choice.site.name, "why": choice.why, "sites": rows})
        return
    from launcher.view.console import data_console
    from launcher.view.tables import show_rows

    show_rows(
        ["", "site", "scheduler", "description", "file"],
        [["*" * row["chosen"], row["name"], row["scheduler"], row["description"], row["path"]] for row in rows],
        data_console(),
    )
    say(f"in use: {choice.site.name} ({choice.why})")
