"""Lock files: which one a role's environment is built from, what it says, and the hash that names the build.

Besides full pins as pip reads them, a lock file's head comments may hold

    # pip: --no-deps            further options of pip install
    # import: torch, vllm       modules that must import once it is built
    # disk: 4G                  room that the environment needs
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import UserError
from launcher.sites.site import IMPORTS, Site, resolve_environment
from launcher.units import parse_mib

COMPLETE = "complete.json"  # in a locked environment: written as the last act of building it


@dataclass(frozen=True)
class Lock:
    """A lock file, read."""

    path: Path
    requirements: tuple[str, ...]
    pip_options: tuple[str, ...]
    imports: tuple[str, ...]
    disk_mib: int  # 0: not said


def lock_path(site: Site, role: str, shipped: Path) -> Path:
    """The lock file of a role: the site's own, or the one below the `shipped` site folder."""
    environment = site.environments.get(role)
    if environment is not None and environment.lock:
        return Path(environment.lock)
    return shipped / "environments" / f"{role}.txt"


def lock_hash(site: Site, role: str, shipped: Path) -> str:
    """12 hex digits over the lock's text, the Python version and the machine: one environment each.

    The version is read off the name of the site's interpreter, so it is the same on a laptop that plans and on
    the login node that builds. Raises UserError where there is no lock file.
    """
    environment = site.environments.get(role)
    named = re.search(r"python(\d\.\d+)$", environment.python) if environment is not None else None
    version = named[1] if named else f"{sys.version_info.major}.{sys.version_info.minor}"
    text = _text(site, role, shipped)
    return hashlib.sha256(f"{text}{version} {platform.machine()}".encode()).hexdigest()[:12]


def lock_hashes(site: Site, shipped: Path) -> dict[str, str]:
    """Lock hashes of the site's locked environments by role; roles without a lock file are left out."""
    return {
        role: lock_hash(site, role, shipped)
        for role, environment in site.environments.items()
        if environment.kind == "locked" and lock_path(site, role, shipped).is_file()
    }


def read_lock(site: Site, role: str, shipped: Path) -> Lock:
    """Read a role's lock file. Raises UserError where there is none or a head comment is wrong."""
    text = _text(site, role, shipped)
    options = " ".join(re.findall(r"^# pip:(.*)$", text, re.MULTILINE))
    imports = " ".join(re.findall(r"^# import:(.*)$", text, re.MULTILINE))
    disk = re.search(r"^# disk: *(.*)$", text, re.MULTILINE)
    path = lock_path(site, role, shipped)
    try:
        return Lock(
            path=path,
            requirements=tuple(re.findall(r"^[A-Za-z0-9][^\s\\]*", text, re.MULTILINE)),
            pip_options=tuple(shlex.split(options)),
            imports=tuple(re.findall(r"[\w.]+", imports)) or IMPORTS[role],
            disk_mib=parse_mib(disk[1]) if disk else 0,
        )
    except ValueError as error:
        raise UserError(f"head comment: {error}", where=str(path)) from None


def usable_python(site: Site, role: str, shipped: Path) -> str:
    """The role's interpreter where it can be called from here: built or existing virtual environments; else ""."""
    environment = site.environments.get(role)
    if environment is None or environment.kind not in ("locked", "venv"):
        return ""
    locked = environment.kind == "locked"
    if locked and not lock_path(site, role, shipped).is_file():
        return ""
    python = resolve_environment(site, role, lock_hash(site, role, shipped) if locked else "").python
    if locked and not (Path(python).parent.parent / COMPLETE).is_file():
        return ""
    return python if os.access(python, os.X_OK) else ""


def lacks(site: Site, role: str, shipped: Path, package: str) -> bool:
    """Whether a role's environment is known not to have a package: by its lock, or by a virtual environment's folder.

    Packages are top-level modules whose distributions begin with the same name (mlflow-skinny has mlflow).
    """
    environment = site.environments.get(role)
    if environment is not None and environment.kind == "locked" and lock_path(site, role, shipped).is_file():
        pins = read_lock(site, role, shipped).requirements
        return not any(re.match(rf"{re.escape(package)}[-=]", pin) for pin in pins)
    python = usable_python(site, role, shipped)
    if not python:
        return False  # nobody can look into it from here
    home = Path(python).parent.parent
    alone = "include-system-site-packages = false" in _config(home)
    return alone and not any(home.glob(f"lib/python3*/site-packages/{package}/__init__.py"))


def _config(home: Path) -> str:
    """The configuration of a virtual environment, "" where the folder is none."""
    try:
        return (home / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return ""


def _text(site: Site, role: str, shipped: Path) -> str:
    path = lock_path(site, role, shipped)
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"there is no lock file for {role}",
            where=str(path),
            hint=f"give site {site.name} its own: environments.{role}.lock, or use kind venv, modules or a container",
        ) from None
