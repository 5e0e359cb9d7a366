"""The one place that names the files of the local scheduler, and the variable that marks a job's processes."""

from __future__ import annotations

import os

RUN = "SWIFTLAUNCH_LOCAL_RUN"  # the folder of this run of the job: each process of a job starts with it
STEP = "SWIFTLAUNCH_LOCAL_STEP"  # the file of the step: each process of a step starts with it


def shims(state_dir: str) -> str:
    """Folder of the `srun` and `scontrol` that jobs find on PATH."""
    return os.path.join(state_dir, "bin")


def supervisor_lock(state_dir: str) -> str:
    """Locked by the supervisor while it lives; holds its identity."""
    return os.path.join(state_dir, "supervisor.lock")


def supervisor_log(state_dir: str) -> str:
    return os.path.join(state_dir, "supervisor.log")


def job(state_dir: str, number: int) -> str:
    return os.path.join(state_dir, "jobs", str(number))


def script(state_dir: str, number: int) -> str:
    """The script as it was submitted; later changes of the original do not count, as in Slurm.

    `number` is the job's id, or its array's.
    """
    return os.path.join(job(state_dir, number), "script")


def submission(state_dir: str, number: int) -> str:
    """JSON, mode 0600: the submitter's environment and umask. Removed when the job has ended."""
    return os.path.join(job(state_dir, number), "submission.json")


def run(state_dir: str, number: int, restarts: int) -> str:
    """Folder of one run of a job; a requeued job gets another one."""
    return os.path.join(job(state_dir, number), f"run-{restarts}")


def state_dir_of(run_dir: str) -> str:
    """The state folder that a run folder is in."""
    return os.path.dirname(os.path.dirname(os.path.dirname(run_dir)))


def stepd(run_dir: str) -> str:
    """Identity of the run's stepd; it exists from its first moment on, and only one process can make it."""
    return os.path.join(run_dir, "stepd")


def ended(run_dir: str) -> str:
    """JSON of how the run ended, by its stepd as its last act."""
    return os.path.join(run_dir, "ended.json")


def allocation(run_dir: str) -> str:
    """JSON for srun: the nodes of the job."""
    return os.path.join(run_dir, "allocation.json")


def steps(run_dir: str) -> str:
    """Folder with a file per step, the identity of its srun."""
    return os.path.join(run_dir, "steps")


def claim(path: str, text: str) -> bool:
    """Make a file with its text at once; False if it is there already."""
    beside = f"{path}.{os.getpid()}"
    with open(beside, "w", encoding="utf-8") as file:
        file.write(text)
    try:
        os.link(beside, path)
    except FileExistsError:
        return False
    finally:
        os.unlink(beside)
    return True


def read(path: str) -> str:
    """The text of a file, "" where there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
