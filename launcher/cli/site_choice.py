"""The site that a command is about: --site, $SWIFTLAUNCH_SITE, this host's name, or local."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.sites import Choice, SiteFile


def chosen_site(name: str) -> Choice:
    """The site in use and why. Raises UserError and InputError as `choose_site` does."""
    from launcher import assets
    from launcher.sites import choose_site

    return choose_site(
        name, environ=os.environ, hostname=socket.gethostname(), home=Path.home(), shipped=assets.folder("site")
    )


def all_sites() -> list[SiteFile]:
    """The site files that --site NAME finds."""
    from launcher import assets
    from launcher.sites import site_files

    return site_files(Path.home(), assets.folder("site"))
