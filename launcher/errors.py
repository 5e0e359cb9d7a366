"""The error tree: every message says where, what, and what to do next.

A fault of the user ends with exit code 2 and no traceback; what went wrong outside (a scheduler, a
registry, a disk) ends with 1. Anything that is not a SwiftlaunchError is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Fault(NamedTuple):
    """One thing wrong with an input: where it stands, what it is, and what to do next."""

    where: str
    message: str
    hint: str = ""


class SwiftlaunchError(Exception):
    """Base of all expected errors. `exit_code` is what the command line returns."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    @property
    def faults(self) -> tuple[Fault, ...]:
        return (Fault(self.where, self.message, self.hint),)

    def __str__(self) -> str:
        lines = []
        for fault in self.faults:
            lines.append(f"{fault.where}: {fault.message}" if fault.where else fault.message)
            if fault.hint:
                lines.append(f"  hint: {fault.hint}")
        return "\n".join(lines)


class UserError(SwiftlaunchError):
    """The user can fix it: a wrong argument, file or choice."""

    exit_code = 2


class InputError(UserError):
    """A recipe, site or data file with one or more faults, all reported in one go."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        if not faults:
            raise ValueError("an InputError needs at least one fault")
        super().__init__(faults[0].message, where=faults[0].where, hint=faults[0].hint)
        self._faults = tuple(faults)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return self._faults


class SchedulerError(SwiftlaunchError):
    """The scheduler refused or did not answer."""


class RunFailed(SwiftlaunchError):
    """A run whose results were asked for did not succeed; its first stage that ended badly says why.

    `state` is the stage's (FAILED, TIMEOUT, CANCELLED ...). `report` is what the first failed rank wrote down, empty
    where none could: `rank`, `error`, `error_class`, `exit_code`.
    """

    def __init__(
        self, message: str, *, run_id: str, stage: str, state: str, report: Mapping[str, Any], hint: str = ""
    ) -> None:
        super().__init__(message, where=run_id, hint=hint)
        self.run_id = run_id
        self.stage = stage
        self.state = state
        self.report = dict(report)


class WaitTimeout(SwiftlaunchError, TimeoutError):
    """What was waited for has not ended in time; it goes on."""


class EnvironmentFault(SwiftlaunchError):
    """A software environment could not be built or used."""


class WorkerError(SwiftlaunchError):
    """A stage failed for a reason that another attempt cannot cure (wrong data, layout, options)."""

    exit_code = 78  # EX_CONFIG of sysexits.h: the job script never requeues on it
