"""The Slurm client: sbatch, squeue, sacct, scancel, for all jobs of a refresh together."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.errors import SchedulerError, UserError
from launcher.scheduler.base import Job, NotKept, Use, with_kind
from launcher.scheduler.local.script import comment_of
from launcher.scheduler.process import Finished
from launcher.scheduler.slurm import ask
from launcher.scheduler.slurm.text import (
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    Outlook,
    master,
    merge,
    parse_sacct,
    parse_squeue,
    parse_test_only,
    pick,
)
from launcher.scheduler.slurm.usage import USE_FIELDS, parse_use
from launcher.states import State
from launcher.units import SECONDS_PER_DAY

_HISTORY_DAYS = 90  # how far back a job is looked for whose time of submission is not known
# without this list sacct leaves out jobs that were cancelled before they could have started (seen with 22.05)
_ALL_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,RS,RV,S,TO"
_RECOVERY_SECONDS = 60.0  # how long a controller that hangs is waited for after a submission
_BUSY_TRIES = 5  # of a submission that a busy controller turns away
_CLOCK_SKEW_SECONDS = 30.0  # between this computer and the controller
_MET_BY_END = ("afterok", "afterany")  # once a job has ended well there is nothing to wait for
_FRESH_SECONDS = 1.0  # nothing ends and is forgotten so soon: MinJobAge is at least two seconds


class SlurmScheduler:
    """Jobs of a Slurm cluster. Each refresh is one squeue and one sacct, for all jobs together."""

    def __init__(self) -> None:
        self._submitted: dict[str, float] = {}  # our own submissions, by time.monotonic()

    def submit(
        self, script: Path, *, depends_on: Sequence[str] = (), dependency_kind: str = "afterok", array: str = ""
    ) -> str:
        """See Scheduler.submit.

        A submission that the controller did not confirm is looked for by its comment, and never made twice: raises
        SchedulerError where it could not be found in a minute.
        """
        words = ["sbatch", "--parsable"]
        if wanted := self._unmet(script, [with_kind(job_id, dependency_kind) for job_id in depends_on]):
            words.append("--dependency=" + ",".join(":".join(dependency) for dependency in wanted))
        if array:
            words.append(f"--array={array}")
        job_id = self._sbatch(script, [*words, str(script)])
        self._submitted[job_id] = time.monotonic()
        return job_id

    def _sbatch(self, script: Path, words: Sequence[str]) -> str:
        begun = time.time()
        for pause in range(_BUSY_TRIES):
            answer = ask.ask_once(words)
            job_id = answer.stdout.strip().partition(";")[0]
            if answer.returncode == 0 and re.fullmatch(r"\d+", job_id):
                return job_id
            if ask.NO_ANSWER.search(answer.stderr):
                return self._submitted_after_all(script, answer, begun)
            if not ask.BUSY.search(answer.stderr):
                break
            ask.wait(2**pause)  # it was turned away before anything was done
        raise ask.failure("sbatch", answer, where=str(script))

    def _unmet(self, script: Path, dependencies: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The dependencies (kind, job) that sbatch has to be told of.

        slurmctld takes an id that it has forgotten for one that is met, even if that job failed: we look first.
        """
        fresh = {
            job_id for _, job_id in dependencies if time.monotonic() - self._submitted.get(job_id, 0.0) < _FRESH_SECONDS
        }
        jobs = self.jobs([job_id for _, job_id in dependencies if job_id not in fresh])
        ended = {job_id for job_id, job in jobs.items() if job.state.terminal}
        failed = [
            job
            for kind, job_id in dependencies
            if kind == "afterok" and job_id in ended
            for job in [jobs[job_id]]
            if not job.state.succeeded
        ]
        if failed:
            text = ", ".join(f"{job.job_id} ({job.state.value})" for job in failed)
            raise UserError(f"depends on jobs that have not succeeded: {text}", where=str(script))
        if unknown := [job.job_id for job in jobs.values() if job.state is State.UNKNOWN]:
            raise SchedulerError(
                f"depends on jobs that Slurm does not know: {', '.join(unknown)}",
                where=str(script),
                hint="Slurm would take them for done; cancel the stage they belong to and resume",
            )
        return [(kind, job_id) for kind, job_id in dependencies if not (job_id in ended and kind in _MET_BY_END)]

    def largest_array(self) -> int:
        """See Scheduler.largest_array: Slurm's MaxArraySize, which task numbers stay below."""
        answer = ask.ask(["scontrol", "show", "config"])
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
        if answer.returncode != 0 or found is None:
            raise ask.failure("scontrol show config", answer)
        return int(found[1])

    def _submitted_after_all(self, script: Path, answer: Finished, begun: float) -> str:
        """The id of a job whose submission was not confirmed. `begun` is Unix seconds."""
        comment = comment_of(script.read_text(encoding="utf-8"))
        earliest = begun - _CLOCK_SKEW_SECONDS
        deadline = time.monotonic() + _RECOVERY_SECONDS
        looks = 3  # a controller that answers again may still have the submission to do
        while comment and looks and time.monotonic() < deadline:
            if ask.controller_answers():
                with suppress(SchedulerError):  # it hangs again
                    found = [
                        job
                        for job in self.find(comment, since=earliest)
                        # of several with this comment, those that were confirmed are others
                        if (job.submitted or 0.0) > earliest and job.job_id not in self._submitted
                    ]
                    if found:
                        return found[-1].job_id
                    looks -= 1
            time.sleep(1)
        raise SchedulerError(
            ask.said("sbatch", answer),
            where=str(script),
            hint="the job may exist all the same: `swiftlaunch status` finds it, `swiftlaunch resume` submits what is "
            "missing; " + ("Slurm answers again" if not looks else "Slurm's controller still does not answer"),
        )

    def jobs(self, ids: Sequence[str], *, since: float | None = None) -> dict[str, Job]:
        """See Scheduler.jobs.

        Without accounting (no sacct) a job is known until the controller forgets it, MinJobAge after its end, and
        UNKNOWN afterwards.
        """
        if not ids:
            return {}
        _check_ids(ids)
        masters = ",".join(sorted({master(job_id) for job_id in ids}, key=int))
        known = merge(self._squeue([f"--jobs={masters}"]), self._sacct([f"--jobs={masters}"], since))
        arrays: dict[str, list[Job]] = {}
        for job in known:
            arrays.setdefault(master(job.job_id), []).append(job)
        exact = {job.job_id: job for job in known}
        return {job_id: exact.get(job_id) or pick(job_id, arrays.get(master(job_id), ())) for job_id in ids}

    def find(self, comment: str, *, since: float | None = None) -> list[Job]:
        """See Scheduler.find."""
        return self.find_all([comment], since=since)[comment]

    def find_all(self, comments: Sequence[str], *, since: float | None = None) -> dict[str, list[Job]]:
        """See Scheduler.find_all. Looks at this user's jobs, without `since` those of the last 90 days.

        Where Slurm does not store comments, jobs are found for as long as the controller remembers them.
        """
        if not comments:
            return {}
        known = self._mine(since)
        return {comment: _with_comment(known, re.escape(comment)) for comment in comments}

    def find_below(self, prefix: str, *, since: float | None = None) -> list[Job]:
        """See Scheduler.find_below, and find_all."""
        return _with_comment(self._mine(since), re.escape(prefix) + ".*")

    def use(self, ids: Sequence[str], *, since: float | None = None) -> list[Use]:
        """See Scheduler.use."""
        _check_ids(ids)
        masters = ",".join(sorted({master(job_id) for job_id in ids}, key=int))
        if shutil.which("sacct") is None:
            raise NotKept("this site has no sacct: Slurm keeps no record of what jobs used")
        answer = ask.ask(["sacct", "-P", "-n", "-D", "-S", _start(since), "-o", USE_FIELDS, f"--jobs={masters}"])
        if "accounting storage is disabled" in answer.stderr:
            raise NotKept("this site has no accounting: Slurm keeps no record of what jobs used")
        if answer.returncode != 0:
            raise ask.failure("sacct", answer)
        return parse_use(answer.stdout)

    def test(self, script: str) -> Outlook:
        """What Slurm says of a script's text without making a job of it; its dependencies are not in it."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
            file.write(script)
            file.flush()
            answer = ask.ask(["sbatch", "--test-only", file.name])
        if answer.returncode != 0 and (ask.NO_ANSWER.search(answer.stderr) or ask.BUSY.search(answer.stderr)):
            raise ask.failure("sbatch --test-only", answer)
        return parse_test_only(answer.returncode, answer.stderr)

    def cancel(self, ids: Sequence[str]) -> None:
        """See Scheduler.cancel."""
        if not ids:
            return
        _check_ids(ids)  # scancel cancels none if one is malformed
        answer = ask.ask(["scancel", *ids])
        if answer.returncode != 0 and not _only_ended(answer.stderr):
            raise ask.failure("scancel", answer)

    def _mine(self, since: float | None) -> list[Job]:
        return merge(self._squeue(["--me"]), self._sacct(["--endtime=now", f"--state={_ALL_STATES}"], since))

    def _squeue(self, which: Sequence[str]) -> list[Job]:
        # all states: for a while the controller knows how a job ended, where accounting lags or is missing
        answer = ask.ask(["squeue", "-h", "-r", "--states=all", "-o", SQUEUE_FORMAT, *which])
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:  # one id asked for, and it is forgotten
            raise ask.failure("squeue", answer)
        return parse_squeue(answer.stdout)

    def _sacct(self, which: Sequence[str], since: float | None) -> list[Job]:
        try:
            answer = ask.ask(["sacct", "-P", "-n", "-D", "-X", "-S", _start(since), "-o", SACCT_FIELDS, *which])
        except SchedulerError:
            return []  # some sites have no accounting: squeue alone has to do
        return parse_sacct(answer.stdout) if answer.returncode == 0 else []


def _with_comment(known: Sequence[Job], pattern: str) -> list[Job]:
    """The jobs, arrays as one, whose comment matches as a whole, oldest first; ids may start again from 1."""
    ids = {master(job.job_id) for job in known if re.fullmatch(pattern, job.comment)}
    jobs = [pick(job_id, known) for job_id in sorted(ids, key=int)]
    return sorted(jobs, key=lambda job: job.submitted or 0.0)


def _start(since: float | None) -> str:
    """sacct's --starttime: without one it looks at today's jobs alone."""
    earliest = time.time() - _HISTORY_DAYS * SECONDS_PER_DAY if since is None else since - _CLOCK_SKEW_SECONDS
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(earliest))


def _check_ids(ids: Sequence[str]) -> None:
    wrong = [job_id for job_id in ids if not re.fullmatch(r"\d+([_+]\d+)?", job_id)]
    if wrong:
        raise UserError(f"not a Slurm job id: {', '.join(map(repr, wrong))}", hint="ids look like 12, 12_3 or 12+1")


def _only_ended(stderr: str) -> bool:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return all("Invalid job id" in line or "already completing or completed" in line for line in lines)
