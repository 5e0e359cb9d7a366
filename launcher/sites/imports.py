"""The command that imports modules in an environment, whatever its kind, and what it prints."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from launcher.plan import Environment

# The installed package's version comes first: some modules have no __version__, and some forget to raise it.
_VERSIONS = """\
from importlib import metadata
packages = metadata.packages_distributions()
def version_of(module):
    found = [metadata.version(name) for name in packages.get(module.__name__, []) if name]
    return found[0] if len(set(found)) == 1 else getattr(module, '__version__', found[0] if found else '?')
"""


def import_command(environment: Environment, modules: Sequence[str]) -> list[str]:
    """Words of a command that imports the modules on this machine and prints their versions.

    For apptainer, modules and virtual environments; Pyxis images are seen by srun alone.
    """
    tops = list(dict.fromkeys(module.partition(".")[0] for module in modules))
    code = f"import {', '.join(modules)}\n{_VERSIONS}"
    code += "".join(f"print('version', {top!r}, version_of({top}))\n" for top in tops)
    words = [environment.python, "-c", code]
    if environment.kind == "apptainer":
        binds = [word for mount in environment.mounts for word in ("--bind", mount)]
        words = ["apptainer", "exec", *binds, environment.image, *words]
    if environment.modules:  # `module` is a function of login shells
        load = ["module", "load", *environment.modules]
        words = ["bash", "-lc", f"module purge && {shlex.join(load)} && exec {shlex.join(words)}"]
    return words


def versions(stdout: str) -> dict[str, str]:
    """Versions by module, from what `import_command` printed."""
    return dict(re.findall(r"^version (\S+) (.*)$", stdout, re.MULTILINE))
