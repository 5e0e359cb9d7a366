"""What the local scheduler may hand out and how patient it is, remembered in `<state_dir>/config.json`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.errors import UserError
from launcher.record import read_json, write_json
from launcher.scheduler.base import Machine


@dataclass(frozen=True)
class Timing:
    """Seconds. `kill_wait` is Slurm's KillWait, from TERM to KILL when a job is ended."""

    poll: float = 0.2  # between two looks of the supervisor and of stepd
    kill_wait: float = 30.0
    step_kill_wait: float = 10.0  # from TERM to KILL for the tasks that are left when one has failed
    idle: float = 5.0  # a supervisor without work ends after this


@dataclass(frozen=True)
class Config:
    """Everything that was decided about this computer."""

    machine: Machine
    timing: Timing


def remember(state_dir: Path, machine: Machine | None, timing: Timing | None) -> Config:
    """The configuration in force; what is given here replaces what was remembered.

    Raises UserError for a machine that can run nothing or a broken file.
    """
    path = state_dir / "config.json"
    try:
        stored = read_json(path) or {}
        known = Config(
            machine=machine or (Machine(**stored["machine"]) if "machine" in stored else detect()),
            timing=timing or Timing(**stored.get("timing", {})),
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), hint="delete it; it is written anew") from None
    if min(known.machine.nodes, known.machine.cpus, known.machine.memory_mib) < 1 or known.machine.gpus < 0:
        raise UserError(f"a machine of {known.machine} can run nothing", where=str(path))
    if asdict(known) != stored:
        write_json(path, asdict(known))
    return known


def load(state_dir: str) -> Config:
    """The remembered configuration. Raises OSError or ValueError without one."""
    with open(os.path.join(state_dir, "config.json"), encoding="utf-8") as file:
        stored = json.load(file)
    return Config(machine=Machine(**stored["machine"]), timing=Timing(**stored["timing"]))


def detect() -> Machine:
    """This computer as one node without GPUs: its CPUs that we may use, its memory."""
    memory_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**2
    return Machine(nodes=1, cpus=len(os.sched_getaffinity(0)), memory_mib=memory_mib)
