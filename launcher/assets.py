"""Where the shipped files are: templates, recipes, sites and locks, in the wheel or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `templates`, `recipes` or `site`. Raises FileNotFoundError if the installation lacks it."""
    for candidate in (_PACKAGE / "_assets" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"swiftlaunch's {name}/ is missing beside {_PACKAGE}")
