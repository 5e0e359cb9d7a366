"""Slurm through its commands, releases 22.05 to 26.05: sbatch, squeue, sacct, scancel.

Asking and parsing are apart: `parse_squeue` and `parse_sacct` are functions of a text. The text formats are used, not
JSON, which differs from release to release.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from launcher.errors import SchedulerError, UserError
from launcher.scheduler.base import Job, whole_array
from launcher.scheduler.process import Finished, run
from launcher.states import State, from_slurm

TIMEOUT_SECONDS = 60.0  # a client command itself gives up after MessageTimeout, by default 10 s, some try twice
# the last field is the only one that may hold a separator
SQUEUE_FORMAT = "%i|%T|%V|%S|%N|%r|%j|%k"
SACCT_FIELDS = "JobID,State,ExitCode,Submit,Start,End,NodeList,Reason,JobName,Comment"
SECONDS_PER_DAY = 86400
_HISTORY_DAYS = 90  # how far back a job is looked for whose time of submission is not known


class SlurmScheduler:
    """Jobs of a Slurm cluster. Each refresh is one squeue and one sacct, for all jobs together."""

    def submit(
        self, script: Path, *, depends_on: Sequence[str] = (), dependency_kind: str = "afterok", array: str = ""
    ) -> str:
        """See Scheduler.submit.

        Raises SchedulerError also where sbatch gave up waiting: the job may exist, look for its comment (`find`).
        """
        ended = [job for job in self.jobs(depends_on).values() if job.state.terminal] if depends_on else []
        if dependency_kind == "afterok" and (failed := [job for job in ended if not job.state.succeeded]):
            # slurmctld takes an id that it has forgotten for a success, even of a job that failed
            text = ", ".join(f"{job.job_id} ({job.state.value})" for job in failed)
            raise UserError(f"depends on jobs that have not succeeded: {text}", where=str(script))
        # one that has ended well is met; slurmctld may not know it any more
        met = {job.job_id for job in ended} if dependency_kind in ("afterok", "afterany") else set()
        words = ["sbatch", "--parsable"]
        if wanted := [job_id for job_id in depends_on if job_id not in met]:
            words.append(f"--dependency={':'.join([dependency_kind, *wanted])}")
        if array:
            words.append(f"--array={array}")
        # what describes the job that we may run in must not shape the new one
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        environ |= {name: os.environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if name in os.environ}
        answer = run([*words, str(script)], env=environ, timeout=TIMEOUT_SECONDS)
        job_id = answer.stdout.strip().partition(";")[0]
        if answer.returncode != 0 or not re.fullmatch(r"\d+", job_id):
            raise SchedulerError(_said("sbatch", answer), where=str(script))
        return job_id

    def jobs(self, ids: Sequence[str]) -> dict[str, Job]:
        """See Scheduler.jobs. Without accounting (no sacct), jobs that have left the queue are UNKNOWN."""
        if not ids:
            return {}
        masters = sorted({job_id.partition("_")[0] for job_id in ids}, key=int)
        known = merge(
            self._squeue(["--jobs=" + ",".join(masters)]),
            self._sacct(["--jobs=" + ",".join(masters)]),
        )
        return {job_id: pick(job_id, known) for job_id in ids}

    def find(self, comment: str) -> list[Job]:
        """See Scheduler.find. Looks at this user's jobs of the last 90 days, where Slurm stores comments."""
        known = merge(self._squeue(["--me"]), self._sacct([]))
        found = {job.job_id.partition("_")[0] for job in known if job.comment == comment}
        return [pick(job_id, known) for job_id in sorted(found, key=int)]

    def cancel(self, ids: Sequence[str]) -> None:
        """See Scheduler.cancel."""
        if not ids:
            return
        answer = run(["scancel", *ids], timeout=TIMEOUT_SECONDS)
        if answer.returncode != 0 and not _only_ended(answer.stderr):
            raise SchedulerError(_said("scancel", answer))

    def _squeue(self, which: Sequence[str]) -> list[Job]:
        answer = run(["squeue", "-h", "-r", "-o", SQUEUE_FORMAT, *which], timeout=TIMEOUT_SECONDS)
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:  # one id asked for, and it has left
            raise SchedulerError(_said("squeue", answer))
        return parse_squeue(answer.stdout)

    def _sacct(self, which: Sequence[str]) -> list[Job]:
        since = time.strftime("%Y-%m-%dT00:00:00", time.localtime(time.time() - _HISTORY_DAYS * SECONDS_PER_DAY))
        try:
            answer = run(
                ["sacct", "-P", "-n", "-D", "-X", "-S", since, "-o", SACCT_FIELDS, *which], timeout=TIMEOUT_SECONDS
            )
        except SchedulerError:
            return []  # some sites have no accounting: squeue alone has to do
        return parse_sacct(answer.stdout) if answer.returncode == 0 else []


def parse_squeue(text: str) -> list[Job]:
    """Jobs from `squeue -h -r -o SQUEUE_FORMAT`."""
    jobs = []
    for line in text.splitlines():
        fields = line.split("|", 7)
        if len(fields) < 8:
            continue
        job_id, state, submitted, started, nodes, reason, name, comment = fields
        found = from_slurm(state)
        jobs.append(
            Job(
                job_id=_leader(job_id),
                name=name,
                state=found,
                nodes=nodes,
                reason="" if reason == "None" else reason,
                submitted=_seconds(submitted),
                started=None if found is State.PENDING else _seconds(started),  # of a pending job: an estimate
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
        for single in _each_task(_leader(job_id)):
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
                submitted=_seconds(submitted),
                started=_seconds(started),
                ended=_seconds(ended),
                comment=comment,
            )
    return list(jobs.values())


def merge(queued: Iterable[Job], accounted: Iterable[Job]) -> list[Job]:
    """One record per job. While the queue knows a job, its state is the queue's: accounting lags behind."""
    known = {job.job_id: job for job in accounted}
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


def _leader(job_id: str) -> str:
    return job_id.removesuffix("+0")  # of a heterogeneous job


def _each_task(job_id: str) -> list[str]:
    """ "12_[3-5,7%2]" -> 12_3, 12_4, 12_5, 12_7: tasks that wait are one line of sacct."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job_id)
    if not match:
        return [job_id]
    tasks: list[str] = []
    for part in match[2].split(","):
        ends, _, step = part.partition(":")
        low, _, high = ends.partition("-")
        tasks += [f"{match[1]}_{task}" for task in range(int(low), int(high or low) + 1, int(step or 1))]
    return tasks


def _seconds(text: str) -> float | None:
    """Unix seconds of Slurm's local time; None for Unknown and N/A."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _only_ended(stderr: str) -> bool:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return all("Invalid job id" in line or "already completing or completed" in line for line in lines)


def _said(program: str, answer: Finished) -> str:
    text = " ".join(answer.stderr.split()) or " ".join(answer.stdout.split()) or f"exit code {answer.returncode}"
    return f"{program} failed: {text}"
