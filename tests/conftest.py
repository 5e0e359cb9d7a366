"""Where the engines are: the environments and the model that `make engines` built for the local site.

Test helpers read SWIFTLAUNCH_TEST_<ROLE>_PYTHON and SWIFTLAUNCH_TEST_MODEL; what is set already wins.
"""

from __future__ import annotations

import os
from pathlib import Path

from launcher import assets
from launcher.sites import ROLES, load_site, usable_python


def _name_the_engines() -> None:
    shipped = assets.folder("site")
    site = load_site(shipped / "local.toml", Path.home())
    for role in ROLES:
        if python := usable_python(site, role, shipped):
            os.environ.setdefault(f"SWIFTLAUNCH_TEST_{role.upper()}_PYTHON", python)
    os.environ.setdefault("SWIFTLAUNCH_TEST_MODEL", str(Path(site.models_dir) / "smollm2-135m-instruct"))


_name_the_engines()
