"""Where the engines are: the environments and the model that `make engines` built for the local site.

Test helpers read SWIFTLAUNCH_TEST_<ROLE>_PYTHON and SWIFTLAUNCH_TEST_MODEL; what is set already wins. Also: signals
that the tests send to what they start are not ignored, as they would be under nohup or in a background job of a shell.
"""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path

from launcher import assets
from launcher.sites import ROLES, load_site, usable_python


def _name_the_engines() -> None:
    shipped = assets.folder("site")
    site = load_site(shipped / "local.toml", Path.home())
    for role in ROLES:
        if python := usable_python(site, role, shipped):
            os.environ.setdefault(f"SWIFTLAUNCH_TEST_{role.upper()}_PYTHON", python)
    wanted = Path(__file__).with_name("train") / "trl.txt"
    trl = Path.home() / ".cache/swiftlaunch/tests" / f"trl-{hashlib.sha256(wanted.read_bytes()).hexdigest()[:12]}"
    os.environ.setdefault("SWIFTLAUNCH_TEST_TRL", str(trl))
    os.environ.setdefault("SWIFTLAUNCH_TEST_MODEL", str(Path(site.models_dir) / "smollm2-135m-instruct"))


def _heed_signals() -> None:
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


_heed_signals()
_name_the_engines()
