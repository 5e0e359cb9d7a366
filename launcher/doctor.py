"""What a site needs to work, checked from this host: each finding with what to do about it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import assets, sites
from launcher.errors import SwiftlaunchError
from launcher.plan import Environment
from launcher.scheduler import process
from launcher.scheduler.admission import told_limits
from launcher.sites import IMPORTS, Site, import_command, resolve_environment, usable_python
from launcher.units import show_mib

OK, WARN, FAIL = "ok", "warn", "fail"
OnProgress = Callable[[int, int, str], None]  # done, total, what

COMMAND_SECONDS = 30.0  # a client waits 9 s for a controller that is down
IMPORT_SECONDS = 300.0
LOW_DISK_MIB = 20 * 1024
OWN_MACHINE = {"ext2", "ext3", "ext4", "xfs", "btrfs", "tmpfs", "overlay", "ramfs"}  # file systems of one machine
NEEDED_COMMANDS = ("sbatch", "squeue", "scontrol", "srun", "scancel")


@dataclass(frozen=True)
class Check:
    """One finding. `level` is ok, warn or fail; `advice` is empty where there is nothing to do."""

    name: str
    level: str
    found: str
    advice: str = ""


def checks(site: Site, on_progress: OnProgress | None = None) -> list[Check]:
    """Everything that can be checked from here; leaves nothing behind. Takes up to a minute per environment."""
    groups: list[tuple[str, Callable[[Site], Iterator[Check]]]] = [
        ("programs", _programs),
        ("folders", _folders),
        ("network", _network),
        ("machine", _machine),
    ]
    if site.scheduler == "slurm":
        groups.insert(1, ("scheduler", _slurm))
    found: list[Check] = []
    total = len(groups) + len(site.environments)
    for done, (name, group) in enumerate(groups):
        if on_progress is not None:
            on_progress(done, total, name)
        found += group(site)
    for done, role in enumerate(site.environments, start=len(groups)):
        if on_progress is not None:
            on_progress(done, total, f"environment {role}")
        found.append(_environment(site, role))
    return found


def _programs(site: Site) -> Iterator[Check]:
    yield Check("python", OK, f"{sys.version.split()[0]} at {sys.executable}")
    version = _answer(["bash", "--version"])
    if version is None:
        yield Check("bash", FAIL, "not found", "install bash: job scripts are bash scripts")
    else:
        yield Check("bash", OK, version.splitlines()[0])
    kinds = {environment.kind for environment in site.environments.values()}
    if "apptainer" in kinds:
        yield _program("apptainer", "load its module before you start, or name the module in the site's environments")
    if "pyxis" in kinds:
        answer = _answer(["srun", "--help"]) or ""
        there = "--container-image" in answer
        advice = "" if there else "ask for the Pyxis plug-in, or use kind apptainer"
        yield Check("pyxis", OK if there else FAIL, f"srun {'has' if there else 'lacks'} --container-image", advice)
    if any(environment.modules for environment in site.environments.values()):
        there = _answer(["bash", "-lc", "type module"]) is not None
        advice = "" if there else "`module` must be known to `bash -l`; see how your centre sets it up"
        yield Check("modules", OK if there else FAIL, "available" if there else "no `module` command", advice)


def _slurm(site: Site) -> Iterator[Check]:
    for name in NEEDED_COMMANDS:
        yield _program(name, "run this on a login node, or put Slurm's bin folder on PATH")
    version = _answer(["sbatch", "--version"])
    if version is None:
        return
    ping = _answer(["scontrol", "ping"])
    if ping is None or "is UP" not in ping:
        found = ping.splitlines()[0] if ping else "does not answer"
        yield Check("controller", FAIL, found, "see `scontrol ping`; the centre may be in maintenance")
        return
    yield Check("controller", OK, f"{ping.splitlines()[0]} ({version.strip()})")
    if (answer := _answer(["sacct", "-n", "-X", "-o", "jobid"])) is None:
        advice = "states of finished jobs come from run directories alone"
        yield Check("accounting", WARN, "sacct is missing or disabled", advice)
    else:
        yield Check("accounting", OK, f"sacct answers ({len(answer.splitlines())} jobs of today)")
    told, found = told_limits()
    advice = "" if told else "a job over a limit is taken and waits for ever: ask the centre for its limits"
    yield Check("limits", OK if told else WARN, found, advice)
    there = set((_answer(["sinfo", "-h", "-o", "%R"]) or "").split())
    for partition in site.partitions:
        known = partition.name in there
        advice = "" if known else f"correct the site file; the scheduler has: {', '.join(sorted(there)) or 'none'}"
        yield Check(f"partition {partition.name}", OK if known else FAIL, "known" if known else "unknown", advice)


def _folders(site: Site) -> Iterator[Check]:
    for key in ("runs_dir", "models_dir", "environments_dir"):
        yield _folder(site, key, Path(getattr(site, key)))
    yield _locking(Path(site.runs_dir))


def _folder(site: Site, key: str, folder: Path) -> Check:
    place = _existing(folder)
    name = f"{folder}" if place == folder else f"{folder} (to be made in {place})"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".swiftlaunch-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Check(key, FAIL, f"{name}: {error.strerror}", f"choose another {key} in {site.path}")
    free = shutil.disk_usage(place).free / 2**20
    kind = file_system(place, Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace"))
    found = f"{name}: {show_mib(free)} free, {kind or 'unknown file system'}"
    if free < LOW_DISK_MIB:
        return Check(key, WARN, found, "checkpoints and environments need more room")
    if site.scheduler == "slurm" and kind in OWN_MACHINE:
        return Check(key, WARN, found, "looks local to this machine: compute nodes must see it under the same path")
    return Check(key, OK, found)


def file_system(path: Path, mounts: str) -> str:
    """Type of the file system that holds a path; `mounts` is the text of /proc/self/mounts. "" if unknown."""
    best, found = "", ""
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ")
        if path.is_relative_to(point) and len(point) >= len(best):  # a later mount hides an earlier one
            best, found = point, fields[2]
    return found


def _locking(folder: Path) -> Check:
    """Whether flock excludes a second opener."""
    name, place = "file locks", _existing(folder)
    advice = "mount it with locks (Lustre: -o flock), or choose another runs_dir"
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".swiftlaunch-") as first, open(first.name) as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return Check(name, OK, f"flock works in {place}")
    except OSError as error:
        return Check(name, FAIL, f"flock in {place}: {error.strerror}", advice)
    return Check(name, FAIL, f"flock in {place} excludes nobody", advice)


def _network(site: Site) -> Iterator[Check]:
    interface = site.network.interface
    if interface:
        there = sorted(os.listdir("/sys/class/net"))
        if interface in there:
            yield Check("interface", OK, interface)
        elif site.scheduler == "local":
            yield Check("interface", FAIL, f"no {interface}", f"set network.interface to one of: {', '.join(there)}")
        else:
            advice = "compute nodes may have it; else correct network.interface"
            yield Check("interface", WARN, f"this host has no {interface}, but {', '.join(there)}", advice)
    host = site.network.rendezvous_host or socket.gethostname()
    try:
        address = socket.getaddrinfo(host, None)[0][4][0]
        yield Check("host name", OK, f"{host} is {address}")
    except OSError as error:
        advice = "ranks meet at rank 0's host name: set network.rendezvous_host, or repair /etc/hosts"
        yield Check("host name", WARN, f"{host}: {error.strerror}", advice)


def _machine(site: Site) -> Iterator[Check]:
    """The local scheduler's nodes are this machine: it must have what they promise."""
    if site.scheduler != "local":
        return
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
    have = int(memory[1]) / 1024 if memory else 0.0
    short = have < site.node.memory_mib
    found = f"{show_mib(have)}, {os.cpu_count()} CPUs; a node of the site has {show_mib(site.node.memory_mib)}"
    yield Check("machine", WARN if short else OK, found, f"lower node.memory in {site.path}" if short else "")
    if site.node.gpus:
        count = len(re.findall(r"^GPU \d+:", _answer(["nvidia-smi", "-L"]) or "", re.MULTILINE))
        level = OK if count >= site.node.gpus else FAIL
        advice = "" if level == OK else f"correct node.gpus in {site.path}, or see `nvidia-smi`"
        yield Check("GPUs", level, f"{count} of {site.node.gpus}", advice)


def _environment(site: Site, role: str) -> Check:
    wanted, name, shipped = site.environments[role], f"environment {role}", assets.folder("site")
    locked = wanted.kind == "locked"
    try:
        lock_hash = sites.lock_hash(site, role, shipped) if locked else ""
        modules = sites.read_lock(site, role, shipped).imports if locked else IMPORTS[role]
    except SwiftlaunchError as error:
        return Check(name, FAIL, error.message, error.hint)
    environment = resolve_environment(site, role, lock_hash)
    if locked and not usable_python(site, role, shipped):
        return Check(name, WARN, "not built, or not to its end", f"run: swiftlaunch env sync {role}")
    if environment.kind == "venv" and not os.access(environment.python, os.X_OK):
        return Check(name, FAIL, f"no interpreter at {environment.python}", f"correct environments.{role}.python")
    if environment.image.startswith("/") and not Path(environment.image).exists():
        return Check(name, FAIL, f"no image at {environment.image}", f"correct environments.{role}.image")
    if environment.kind == "pyxis" or (not environment.image.startswith("/") and environment.image):
        return Check(name, OK, f"{environment.image}; only a job can look into it")
    return _imports(name, environment, modules)


def _imports(name: str, environment: Environment, modules: tuple[str, ...]) -> Check:
    try:
        done = process.run(import_command(environment, modules), timeout=IMPORT_SECONDS)
    except SwiftlaunchError as error:
        return Check(name, FAIL, error.message, error.hint)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        advice = f"install what is missing, or correct environments.{environment.role} of the site"
        if environment.lock:
            advice = f"run: swiftlaunch env remove {environment.role}; swiftlaunch env sync {environment.role}"
        return Check(name, FAIL, f"cannot import {', '.join(modules)}: {lines[-1]}", advice)
    return Check(name, OK, ", ".join(f"{module} {version}" for module, version in sites.versions(done.stdout).items()))


def _program(name: str, advice: str) -> Check:
    path = shutil.which(name)
    return Check(name, OK, path) if path else Check(name, FAIL, "not found", advice)


def _answer(argv: list[str]) -> str | None:
    """stdout of a command, None if it is not there, fails or hangs."""
    try:
        done = process.run(argv, timeout=COMMAND_SECONDS)
    except SwiftlaunchError:
        return None
    return done.stdout if done.returncode == 0 else None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder
