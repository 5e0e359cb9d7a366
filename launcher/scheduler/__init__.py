"""Schedulers: the embedded local one and Slurm, behind one interface (`launcher.scheduler.base`).

Nothing is imported here up front: the local scheduler's `srun` passes through this file at every start.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without the import of typing
if TYPE_CHECKING:
    from pathlib import Path

    from launcher.scheduler.base import Job, Machine, Scheduler

__all__ = ["Job", "Machine", "Scheduler", "default_state_dir", "open_scheduler"]


def open_scheduler(kind: str, *, state_dir: Path, machine: Machine | None = None) -> Scheduler:
    """The scheduler of that kind, "local" or "slurm".

    `state_dir` is where the local scheduler keeps its table and its jobs. `machine` is what it may hand out; it is
    remembered there, and without it the remembered one counts, or what this computer has.
    Raises UserError for another kind.
    """
    if kind == "local":
        from launcher.scheduler.local.client import LocalScheduler

        return LocalScheduler(state_dir, machine=machine)
    if kind == "slurm":
        from launcher.scheduler.slurm.client import SlurmScheduler

        return SlurmScheduler()
    from launcher.errors import UserError

    raise UserError(f"unknown scheduler {kind!r}", where="site.scheduler", hint="write local or slurm")


def default_state_dir() -> Path:
    """Where the local scheduler of this user keeps its state: `$XDG_STATE_HOME/swiftlaunch/local`."""
    import os
    from pathlib import Path

    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "swiftlaunch" / "local"


def __getattr__(name: str) -> object:
    if name in ("Job", "Machine", "Scheduler"):
        from launcher.scheduler import base

        return getattr(base, name)
    raise AttributeError(name)
