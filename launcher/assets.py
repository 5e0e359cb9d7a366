"""Where the shipped files are: templates, recipes, sites and locks, in the wheel or in a checkout."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `templates`, `recipes` or `site`. Raises FileNotFoundError if the installation lacks it."""
    for candidate in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"swiftlaunch's {name}/ is missing beside {_PACKAGE}")


def lock_path(role: str) -> Path:
    """The lock file (exact pins) of a worker role's environment."""
    return folder("site") / "environments" / f"{role}.txt"


def lock_hash(role: str) -> str:
    """12 hex digits over the lock's text, the Python version and the machine: one environment each."""
    text = lock_path(role).read_bytes()
    python = f"{sys.version_info.major}.{sys.version_info.minor} {platform.machine()}"
    return hashlib.sha256(text + python.encode()).hexdigest()[:12]


def lock_hashes() -> dict[str, str]:
    """Role -> lock hash, for every lock that is shipped."""
    return {path.stem: lock_hash(path.stem) for path in sorted((folder("site") / "environments").glob("*.txt"))}
