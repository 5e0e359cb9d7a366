"""What neither a recipe nor a site may hand to a job: secrets in plain sight, variables and options that are ours."""

from __future__ import annotations

import re

_SECRET = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|(API|ACCESS|PRIVATE)?KEY|PAT)(_|$)", re.IGNORECASE
)
_NOT_SECRET = re.compile(r"_(PATH|FILE|DIR)$", re.IGNORECASE)  # where a secret lies is none
_OURS = re.compile(r"(SLURM|SBATCH|SRUN|SWIFTLAUNCH)_.*|PYTHONPATH")
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=.+)?")

# sbatch options with a key of their own under [resources], or that the job scripts depend on
_OWN_KEYS = {
    "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node",
    "cpus-per-task": "cpus_per_task",
    "gpus-per-node": "gpus_per_node",
    "mem": "memory",
    "time": "time_limit",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
}
# fmt: off
_FIXED = {
    "array", "chdir", "comment", "dependency", "error", "export", "export-file", "input", "job-name",
    "kill-on-invalid-dep", "no-requeue", "ntasks", "open-mode", "output", "parsable", "requeue", "signal",
    "test-only", "wait", "wrap",
}
# fmt: on


def looks_secret(variable: str) -> bool:
    """Whether a variable of this name seems to hold a secret: HF_TOKEN does, SSH_KEY_FILE does not."""
    return bool(_SECRET.search(variable)) and not _NOT_SECRET.search(variable)


def is_ours(variable: str) -> bool:
    """Whether the scheduler or swiftlaunch sets a variable of this name in jobs."""
    return bool(_OURS.fullmatch(variable))


def sbatch_refusal(word: str) -> tuple[str, str]:
    """Why a word cannot be a further sbatch option ("" if it can), and what to write instead ("" for nothing)."""
    match = _OPTION.fullmatch(word)
    if not match:
        return "is not one long sbatch option", 'write "--exclusive" or "--name=value"'
    if match[1] in _OWN_KEYS:
        return "has a key of its own", f"use the key {_OWN_KEYS[match[1]]}"
    if match[1] in _FIXED:
        return "is set by swiftlaunch; jobs would not end or resume as they should", ""
    return "", ""
