"""Locked environments: a lock file of full pins -> a virtual environment, built once, checked, resumable.

A virtual environment cannot be moved, so it is built in its final folder, `<environments_dir>/ROLE-HASH`;
`complete.json` is written last and is what makes it usable.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from launcher import assets, sites
from launcher.errors import EnvironmentFault, UserError
from launcher.exclusive import exclusive
from launcher.plan import Environment
from launcher.record import read_json, write_json, write_text
from launcher.scheduler import process
from launcher.sites import (
    COMPLETE,
    Lock,
    Site,
    SiteEnvironment,
    environment_folder,
    import_command,
)
from launcher.units import show_mib

OnProgress = Callable[[int, int, str], None]  # done, total, what; total is 0 while it is not known

IMPORT_SECONDS = 600.0  # first imports of torch from a cold parallel file system take minutes

# Run a module while holding a lock: where sync is killed, its pip lives on, and the next sync must wait for it.
_HELD = """
import fcntl, runpy, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class EnvironmentState:
    """What is there for a role. `broken` is the reason in words why it cannot be used, "" where it can."""

    role: str
    kind: str
    python: str
    present: bool
    broken: str = ""
    size_mib: int = 0
    packages: int = 0


def lock_path(site: Site, role: str) -> Path:
    """The lock file of a role: the site's own, or the shipped one. Raises UserError if the site lacks the role."""
    _environment(site, role)
    return sites.lock_path(site, role, assets.folder("site"))


def status(site: Site, role: str) -> EnvironmentState:
    """What is there for a role; looks at files only. Raises UserError if the site does not name the role."""
    environment = _environment(site, role)
    if environment.kind == "locked":
        path = lock_path(site, role)
        if not path.is_file():
            return EnvironmentState(role, "locked", "", present=False, broken=f"there is no lock file {path}")
        return _locked_status(role, _folder(site, role))
    kind, python = environment.kind, environment.python
    missing = ""
    if kind == "venv" and not os.access(python, os.X_OK):
        missing = f"there is no interpreter at {python}"
    elif environment.image.startswith("/") and not Path(environment.image).exists():
        missing = f"there is no image at {environment.image}"
    return EnvironmentState(role, kind, python, present=not missing, broken=missing)


def sync(site: Site, role: str, on_progress: OnProgress) -> EnvironmentState:
    """Build a role's locked environment, or go on with an interrupted build; returns at once if it is there.

    Several syncs of one role wait for each other. Raises UserError for a role that is not locked, and
    EnvironmentFault (with what to do) for a full disk, an unreachable registry, a package that does not build
    or import.
    """
    environment = _environment(site, role)
    if environment.kind != "locked":
        raise UserError(
            f"the {role} environment of site {site.name} is yours (kind {environment.kind})",
            where=f"{site.path}: environments.{role}",
            hint='only kind "locked" is built here',
        )
    lock = sites.read_lock(site, role, assets.folder("site"))
    folder = _folder(site, role)
    with _alone(folder, on_progress):
        found = _locked_status(role, folder)
        if found.present:
            return found
        started = time.monotonic()
        _check_disk(folder, lock)
        _make_venv(folder, environment.python or sys.executable, on_progress)
        _install(folder, lock, on_progress)
        on_progress(len(lock.requirements), len(lock.requirements), "first import")
        _check_imports(environment, folder, lock)
        packages = _installed(folder)
        write_json(
            folder / COMPLETE,
            {
                "role": role,
                "lock": str(lock.path),
                "lock_hash": folder.name.rpartition("-")[2],
                "python": os.path.realpath(folder / "bin/python"),
                "packages": packages,
                "seconds": round(time.monotonic() - started, 1),
                "size_mib": _size_mib(folder),
            },
        )
    return _locked_status(role, folder)


def remove(site: Site, role: str) -> int:
    """Remove a role's locked environment, whole or not; MiB set free. Raises UserError for other kinds."""
    if _environment(site, role).kind != "locked":
        raise UserError(f"the {role} environment of site {site.name} is yours; swiftlaunch does not remove it")
    folder = _folder(site, role)
    if not folder.exists():
        return 0
    with _alone(folder, lambda done, total, what: None):
        size = _size_mib(folder)
        (folder / COMPLETE).unlink(missing_ok=True)  # first: a half-removed environment must not look whole
        shutil.rmtree(folder, ignore_errors=True)
    return size


def _environment(site: Site, role: str) -> SiteEnvironment:
    if role not in site.environments:
        names = ", ".join(site.environments) or "none"
        raise UserError(f"site {site.name} has no environment for {role!r}", where=site.path, hint=f"it has: {names}")
    return site.environments[role]


def _folder(site: Site, role: str) -> Path:
    return environment_folder(site, role, sites.lock_hash(site, role, assets.folder("site")))


def _check_imports(wanted: SiteEnvironment, folder: Path, lock: Lock) -> None:
    built = Environment(wanted.role, "venv", str(folder / "bin/python"), modules=wanted.modules)
    done = process.run(import_command(built, lock.imports), timeout=IMPORT_SECONDS)
    if done.returncode:
        modules = ", ".join(lock.imports)
        raise EnvironmentFault(
            f"the {wanted.role} environment is installed but cannot import {modules}: {done.last_line}",
            hint=f"see what it prints: {shlex.join([built.python, '-c', 'import ' + modules])}",
        )


def _locked_status(role: str, folder: Path) -> EnvironmentState:
    python = folder / "bin/python"
    record = read_json(folder / COMPLETE)
    broken = ""
    if record is None:
        broken = "its build did not end; sync goes on with it" if folder.exists() else ""
    elif not os.access(python, os.X_OK):
        broken = f"the interpreter it was built with is gone: {record['python']}"
    return EnvironmentState(
        role=role,
        kind="locked",
        python=str(python),
        present=record is not None and not broken,
        broken=broken,
        size_mib=record["size_mib"] if record else 0,
        packages=len(record["packages"]) if record else 0,
    )


def _alone(folder: Path, on_progress: OnProgress) -> AbstractContextManager[None]:
    """Hold the lock of one environment; says so while another process has it."""
    return exclusive(
        _lock_file(folder, "sync"),
        setting="environments_dir",
        on_wait=lambda: on_progress(0, 0, f"wait for another sync of {folder.name}"),
    )


def _lock_file(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}.lock")


def _held(folder: Path, python: str, *words: str) -> list[str]:
    # -I: no PYTHONPATH, no user site-packages; -u: progress lines as they come
    return [python, "-I", "-u", "-c", _HELD, str(_lock_file(folder, "step")), *words]


def _check_disk(folder: Path, lock: Lock) -> None:
    free = shutil.disk_usage(folder.parent).free / 2**20
    need = lock.disk_mib - (_size_mib(folder) if folder.exists() else 0)
    if free < need:
        raise EnvironmentFault(
            f"{folder.parent} has {show_mib(free)} free, the environment needs {show_mib(need)} more",
            hint="make room (`swiftlaunch env list` shows sizes), or choose another environments_dir in the site file",
        )


def _make_venv(folder: Path, python: str, on_progress: OnProgress) -> None:
    on_progress(0, 0, "make the virtual environment")
    own = str(folder / "bin/python")
    whole = os.access(own, os.X_OK) and process.run(_held(folder, own, "pip", "--version"), timeout=120).returncode == 0
    if whole:
        return
    done = process.run(_held(folder, python, "venv", "--clear", str(folder)), timeout=600)
    if done.returncode:
        raise EnvironmentFault(
            f"{python} -m venv failed: {done.last_line}",
            hint="install Debian's python3-venv, or name another interpreter in the site: environments.ROLE.python",
        )


# "Processing" names files: wheels of --find-links and of mirrors that are folders
_PACKAGE = re.compile(
    r"(?:Collecting|Requirement already satisfied:) (?P<name>[A-Za-z0-9._-]+)"
    r"|Processing (?:\S*/)?(?P<file>[A-Za-z0-9._]+)-"
)


def _install(folder: Path, lock: Lock, on_progress: OnProgress) -> None:
    _forget_half_installed(folder)
    total = len(lock.requirements)
    collected: dict[str, None] = {}  # an ordered set: pip names a package once for each that needs it
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)
        if found := _PACKAGE.match(text):
            package = found["name"] or found["file"]
            collected[package] = None
            on_progress(min(len(collected) - 1, total), total, package)
        elif text.startswith("Installing collected packages:"):
            count = text.count(",") + 1
            on_progress(total, total, f"unpack {count} package{'s' if count > 1 else ''}")
        elif found := re.match(r"Building wheels? for collected packages: (.*)", text):
            on_progress(min(len(collected), total), total, f"build {found[1]}")

    words = ("pip", "install", "--progress-bar", "off", *lock.pip_options, "-r", str(lock.path))
    done = process.run(_held(folder, str(folder / "bin/python"), *words), on_line=line)
    log = folder / "sync.log"
    write_text(log, "\n".join(lines) + "\n")
    if done.returncode:
        raise _pip_fault(lines, next(reversed(collected), ""), log)


def _forget_half_installed(folder: Path) -> None:
    """Remove the metadata of packages whose install was cut off, which pip would take for installed.

    pip writes INSTALLER after a package's files and lists it in RECORD, its last act.
    """
    for info in folder.glob("lib/python*/site-packages/*.dist-info"):
        record = info / "RECORD"
        if not record.is_file() or "/INSTALLER," not in record.read_text(encoding="utf-8", errors="replace"):
            shutil.rmtree(info)


_UNREACHABLE = re.compile(
    r"connection broken by|NewConnectionError|Max retries exceeded|Name or service not known|NameResolutionError"
    r"|Temporary failure in name resolution|ReadTimeoutError|ConnectTimeoutError|Connection refused|ProxyError"
    r"|Network is unreachable|SSLError|CERTIFICATE_VERIFY_FAILED|Connection reset|IncompleteRead"
)


def _pip_fault(lines: list[str], package: str, log: Path) -> EnvironmentFault:
    """What pip's output means for the user."""
    errors = [line for line in lines if line.startswith("ERROR:")]
    text = "\n".join(lines)
    if missing := re.search(r"No matching distribution found for (\S+)", text):
        package = missing[1]
    detail = errors[-1].removeprefix("ERROR:").strip() if errors else process.last_line(text)
    own = "or point the site to an existing venv, module or image"
    if "No space left on device" in text:
        message, hint = f"the disk is full at {package}", f"make room and run it again: it resumes; {own}"
    elif "DO NOT MATCH THE HASHES" in text:
        message, hint = (
            f"{package} is not the file that the lock pins (hash)",
            f"is your package mirror trustworthy? {log}",
        )
    elif _UNREACHABLE.search(text):
        message = f"the package registry could not be reached at {package or 'the first package'}"
        hint = f"run it again where the registry can be reached (PIP_INDEX_URL, PIP_PROXY): it resumes; {own}"
    elif missing:
        message, hint = f"the registry has no {package} for this Python and machine", f"see {log}; {own}"
    else:
        message, hint = f"pip failed at {package or 'the start'}: {detail}", f"see {log}; {own}"
    return EnvironmentFault(message, hint=hint)


def _installed(folder: Path) -> dict[str, str]:
    """Package versions by name."""
    found = {}
    for info in sorted(folder.glob("lib/python*/site-packages/*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").rpartition("-")
        found[name.lower().replace("_", "-")] = version
    return found


def _size_mib(folder: Path) -> int:
    blocks = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                blocks += os.lstat(os.path.join(place, name)).st_blocks
            except FileNotFoundError:
                continue
    return round(blocks * 512 / 2**20)
