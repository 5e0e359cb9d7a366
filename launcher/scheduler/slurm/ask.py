"""Start Slurm's commands: with an environment that does not shape their output, patient with a busy controller."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Sequence

from launcher.errors import SchedulerError
from launcher.failures import SLURM_BUSY, SLURM_NO_ANSWER
from launcher.scheduler.process import Finished, ProcessTimeout, run

TIMEOUT_SECONDS = 60.0  # a client command itself gives up after MessageTimeout, by default 10 s, some try twice
NO_ANSWER, BUSY = re.compile(SLURM_NO_ANSWER), re.compile(SLURM_BUSY)
_PATIENCE_SECONDS = 20.0  # a question is asked again for so long
_FIRST_PAUSE_SECONDS = 0.5
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


def ask_once(words: Sequence[str]) -> Finished:
    """Run a command of Slurm's. One that gives no answer in time counts as failed, with that as its message."""
    try:
        return run(words, env=_environ(), timeout=TIMEOUT_SECONDS)
    except ProcessTimeout as error:
        return Finished(1, "", error.message)


def ask(words: Sequence[str]) -> Finished:
    """Run a command that only reads; a busy controller is asked again, after pauses that double, each a bit random.

    A controller that does not answer `scontrol ping` either is not waited for.
    """
    begun = time.monotonic()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        answer = ask_once(words)
        if answer.returncode == 0:
            return answer
        silent = bool(NO_ANSWER.search(answer.stderr))
        if not silent and not BUSY.search(answer.stderr):
            return answer
        if time.monotonic() - begun + pause > _PATIENCE_SECONDS or (silent and not controller_answers()):
            return answer
        wait(pause)
        pause *= 2


def wait(seconds: float) -> None:
    """Half to all of that time: many clients that were told to come back do not come back at once."""
    time.sleep(seconds * random.uniform(0.5, 1.0))  # noqa: S311  not a secret


def controller_answers() -> bool:
    """Whether slurmctld answers; `scontrol ping` says so at once where squeue would wait."""
    answer = ask_once(["scontrol", "ping"])
    return answer.returncode == 0 and " UP" in answer.stdout


def failure(program: str, answer: Finished, *, where: str = "") -> SchedulerError:
    """The error of a command that failed, with whose fault it is."""
    hint = ""
    if BUSY.search(answer.stderr):
        hint = "Slurm's controller has too much to do and asks clients to come back later; try again"
    elif NO_ANSWER.search(answer.stderr):
        if controller_answers():
            hint = "the controller answers `scontrol ping`: it is busy, try again"
        else:
            hint = "the controller does not answer `scontrol ping`; jobs that run go on, try again later"
    return SchedulerError(said(program, answer), where=where, hint=hint)


def said(program: str, answer: Finished) -> str:
    """The message of a command that failed, in one line."""
    text = " ".join(answer.stderr.split()) or " ".join(answer.stdout.split()) or f"exit code {answer.returncode}"
    return f"{program} failed: {text}"


def _environ() -> dict[str, str]:
    """Our environment, without what shapes the commands' output or describes a job that we may run in."""
    shaping = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SSHARE_", "SACCTMGR_")
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or not name.startswith(shaping)
    }
    return {**kept, "SLURM_BITSTR_LEN": "0"}  # else lists of array tasks are cut after 64 characters
