"""Which site is in use: --site > $SWIFTLAUNCH_SITE > the login host's name > local."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.errors import Fault, InputError, UserError
from launcher.sites.read import load_site
from launcher.sites.site import Site
from launcher.sites.table import close_hint

USER_FOLDER = Path(".config/swiftlaunch/sites")  # below the home directory
CHOICE_VARIABLE = "SWIFTLAUNCH_SITE"


@dataclass(frozen=True)
class SiteFile:
    """A site file that `--site NAME` finds."""

    name: str
    path: Path
    shipped: bool


@dataclass(frozen=True)
class Choice:
    """The site in use, and the reason in words ("--site", "host name login1 matches login*")."""

    site: Site
    why: str


def site_files(home: Path, shipped: Path) -> list[SiteFile]:
    """All site files by name: the shipped ones, and the user's, which win on equal names."""
    found: dict[str, SiteFile] = {}
    for folder, is_shipped in ((shipped, True), (home / USER_FOLDER, False)):
        for path in sorted(folder.glob("*.toml")):
            found[path.stem] = SiteFile(path.stem, path, is_shipped)
    return [found[name] for name in sorted(found)]


def choose_site(name: str, *, environ: Mapping[str, str], hostname: str, home: Path, shipped: Path) -> Choice:
    """The site to use: `name` (--site) > $SWIFTLAUNCH_SITE > host name pattern > local.

    A name may be a path to a TOML file. Raises UserError for an unknown or an ambiguous choice and InputError
    for a broken file.
    """
    files = site_files(home, shipped)
    if name:
        return Choice(_named(name, files, home), "--site")
    if wanted := environ.get(CHOICE_VARIABLE, ""):
        return Choice(_named(wanted, files, home), f"${CHOICE_VARIABLE}")
    matches: list[tuple[Site, str]] = []
    for file in files:
        if file.shipped and file.name.startswith("example-"):
            continue
        site = _listed(file, home)
        if pattern := next((p for p in site.hostnames if fnmatch.fnmatch(hostname, p)), ""):
            matches.append((site, pattern))
    if len(matches) > 1:
        names = ", ".join(site.name for site, _ in matches)
        raise UserError(
            f"host name {hostname} matches several sites: {names}",
            hint=f"choose one with --site or ${CHOICE_VARIABLE}, or narrow their hostnames",
        )
    if matches:
        return Choice(matches[0][0], f"host name {hostname} matches {matches[0][1]}")
    return Choice(_named("local", files, home), "no site names this host; local is the last choice")


def _named(name: str, files: list[SiteFile], home: Path) -> Site:
    if name.endswith(".toml") or "/" in name:
        path = home / name[2:] if name.startswith("~/") else Path(name)
        return replace(load_site(path.absolute(), home), asked=str(path.absolute()))
    for file in files:
        if file.name == name:
            return _listed(file, home)
    raise UserError(f"there is no site {name!r}", hint=close_hint(name, [file.name for file in files]))


def _listed(file: SiteFile, home: Path) -> Site:
    site = load_site(file.path, home)
    if site.name != file.name:
        fault = Fault(f"{file.path}: name", f"the site calls itself {site.name!r}, its file {file.name!r}")
        raise InputError([fault._replace(hint="give both the same name")])
    return site
