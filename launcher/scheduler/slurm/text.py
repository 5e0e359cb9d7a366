"""What squeue, sacct and sbatch print, read: functions of a text, the same for releases 22.05 to 26.05.

The text formats are used, not JSON, which differs from release to release.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from launcher.scheduler.base import Job, whole_array
from launcher.states import State, from_slurm

# the last field is the only one that may hold a separator
SQUEUE_FORMAT = "%i|%T|%V|%S|%N|%r|%j|%k"
SACCT_FIELDS = "JobID,State,ExitCode,Submit,Start,End,NodeList,Reason,JobName,Comment"


@dataclass(frozen=True)
class Outlook:
    """What `sbatch --test-only` says of a script: when it may start (Unix seconds), or why Slurm refuses it."""

    start: float | None = None
    nodes: str = ""
    refusal: str = ""


def parse_squeue(text: str) -> list[Job]:
    """Jobs from `squeue -h -r -o SQUEUE_FORMAT`."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) < 8:
            continue
        job_id, state, submitted, started, nodes, reason, name, comment = fields
        found = from_slurm(state)
        waits = found is State.PENDING
        jobs.append(
            Job(
                job_id=_leader(job_id),
                name=name,
                state=found,
                nodes=nodes,
                reason="" if reason == "None" else reason,
                submitted=seconds(submitted),
                started=None if waits else seconds(started),
                expected=seconds(started) if waits else None,
                comment="" if comment == "(null)" else comment,
            )
        )
    return jobs


def parse_sacct(text: str) -> list[Job]:
    """Jobs from `sacct -P -n -D -X -o SACCT_FIELDS`: with -D each run of a requeued job has a line, the last counts."""
    jobs: dict[str, Job] = {}
    for line in text.splitlines():
        fields = line.split("|", 9)
        if len(fields) < 10:
            continue
        job_id, state, exit_code, submitted, started, ended, nodes, reason, name, comment = fields
        for single in each_task(_leader(job_id)):
            earlier = jobs.get(single)
            code, _, number = exit_code.partition(":")
            found = from_slurm(state)
            jobs[single] = Job(
                job_id=single,
                name=name,
                state=found,
                exit_code=int(code) if code.isdigit() and found.terminal else None,
                signal=int(number) or None if number.isdigit() and found.terminal else None,
                restarts=earlier.restarts + 1 if earlier else 0,
                nodes="" if nodes == "None assigned" else nodes,
                reason=reason if found is State.PENDING and reason != "None" else "",  # else why it once waited
                submitted=seconds(submitted),
                started=seconds(started),
                ended=seconds(ended),
                comment=comment,
            )
    return list(jobs.values())


def merge(queued: Iterable[Job], accounted: Iterable[Job]) -> list[Job]:
    """One record per job. While the queue knows a job, its state is the queue's: accounting lags behind.

    A controller that was killed loses jobs that it had not written down. Accounting has them waiting or running for
    ever, so what the queue does not know is UNKNOWN until accounting says that it has ended.
    """
    lost = "the controller does not know this job"
    known = {
        job.job_id: job if job.state.terminal else replace(job, state=State.UNKNOWN, reason=lost) for job in accounted
    }
    for job in queued:
        past = known.get(job.job_id)
        if past is None:
            known[job.job_id] = job
        elif not job.state.terminal:
            known[job.job_id] = replace(job, restarts=past.restarts, comment=job.comment or past.comment)
        elif not past.state.terminal:
            known[job.job_id] = replace(job, restarts=past.restarts)
    return list(known.values())


def pick(job_id: str, known: Sequence[Job]) -> Job:
    """The job of this id, or all tasks of the array of this id as one; UNKNOWN if there is none."""
    tasks = [job for job in known if job.job_id.partition("_")[0] == job_id.partition("_")[0]]
    exact = [job for job in tasks if job.job_id == job_id]
    if exact:
        return exact[0]
    return whole_array(job_id, tasks) if tasks and "_" not in job_id else Job(job_id)


def parse_test_only(returncode: int, stderr: str) -> Outlook:
    """What `sbatch --test-only` found; it makes no job, and says everything on stderr."""
    match = re.search(r"Job \d+ to start at (\S+) using .*? on (?:nodes )?(\S+)", stderr)
    if match:
        return Outlook(start=seconds(match[1]), nodes=match[2])
    if returncode == 0:
        return Outlook()
    lines = [re.sub(r"^(?:sbatch: )?(?:error: |allocation failure: )*", "", line) for line in stderr.splitlines()]
    said = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    return Outlook(refusal="; ".join(said) or f"exit code {returncode}")


def master(job_id: str) -> str:
    """The id without the task of an array or the component of a heterogeneous job."""
    return re.split("[_+]", job_id)[0]


def each_task(job_id: str) -> list[str]:
    """ "12_[3-5,7%2]" -> 12_3, 12_4, 12_5, 12_7: tasks that wait are one line of sacct."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+?)(?:,?\.\.\.)?(?:%\d+)?\]", job_id)  # long lists are cut: "1,3,..."
    if not match:
        return [job_id]
    tasks: list[str] = []
    for part in match[2].split(","):
        ends, _, step = part.partition(":")
        low, _, high = ends.partition("-")
        tasks += [f"{match[1]}_{task}" for task in range(int(low), int(high or low) + 1, int(step or 1))]
    return tasks


def seconds(text: str) -> float | None:
    """Unix seconds of Slurm's local time; None for Unknown and N/A."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _leader(job_id: str) -> str:
    return job_id.removesuffix("+0")  # of a heterogeneous job
