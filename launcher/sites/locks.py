"""Which lock file a role's environment is built from, and the hash that names the build."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
from pathlib import Path

from launcher.sites.site import Site, resolve_environment

COMPLETE = "complete.json"  # in a locked environment: written as the last act of building it


def lock_path(site: Site, role: str, shipped: Path) -> Path:
    """The lock file of a role: the site's own, or the one below the `shipped` site folder."""
    environment = site.environments.get(role)
    if environment is not None and environment.lock:
        return Path(environment.lock)
    return shipped / "environments" / f"{role}.txt"


def lock_hash(site: Site, role: str, shipped: Path) -> str:
    """12 hex digits over the lock's text, the Python version and the machine: one environment each.

    The version is read off the name of the site's interpreter, so it is the same on a laptop that plans and on
    the login node that builds. Raises FileNotFoundError where there is no lock file.
    """
    environment = site.environments.get(role)
    named = re.search(r"python(\d\.\d+)$", environment.python) if environment is not None else None
    version = named[1] if named else f"{sys.version_info.major}.{sys.version_info.minor}"
    text = lock_path(site, role, shipped).read_bytes()
    return hashlib.sha256(text + f"{version} {platform.machine()}".encode()).hexdigest()[:12]


def lock_hashes(site: Site, shipped: Path) -> dict[str, str]:
    """Lock hashes of the site's locked environments by role; roles without a lock file are left out."""
    return {
        role: lock_hash(site, role, shipped)
        for role, environment in site.environments.items()
        if environment.kind == "locked" and lock_path(site, role, shipped).is_file()
    }


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
