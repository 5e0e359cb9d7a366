"""Slurm through its commands, releases 22.05 to 26.05: sbatch, squeue, sacct, scancel, scontrol ping.

Asking and parsing are apart: `parse_squeue` and `parse_sacct` are functions of a text. The text formats are used, not
JSON, which differs from release to release.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from launcher.errors import SchedulerError, UserError
from launcher.scheduler.base import Job, whole_array
from launcher.scheduler.local.script import parse_script
from launcher.scheduler.process import Finished, ProcessTimeout, run
from launcher.states import State, from_slurm

TIMEOUT_SECONDS = 60.0  # a client command itself gives up after MessageTimeout, by default 10 s, some try twice
# the last field is the only one that may hold a separator
SQUEUE_FORMAT = "%i|%T|%V|%S|%N|%r|%j|%k"
SACCT_FIELDS = "JobID,State,ExitCode,Submit,Start,End,NodeList,Reason,JobName,Comment"
SECONDS_PER_DAY = 86400
_HISTORY_DAYS = 90  # how far back a job is looked for whose time of submission is not known
# without this list sacct leaves out jobs that were cancelled before they could have started (seen with 22.05)
_ALL_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,RS,RV,S,TO"
# what clients print when slurmctld did not answer: what they asked for may have been done
_NO_ANSWER = re.compile(r"timed out|Unable to contact|Zero Bytes|connect failure|Connection refused|did not end within")
_RECOVERY_SECONDS = 60.0  # how long a controller that hangs is waited for after a submission
_CLOCK_SKEW_SECONDS = 30.0  # between this computer and the controller
_KEPT_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


class SlurmScheduler:
    """Jobs of a Slurm cluster. Each refresh is one squeue and one sacct, for all jobs together."""

    def submit(
        self, script: Path, *, depends_on: Sequence[str] = (), dependency_kind: str = "afterok", array: str = ""
    ) -> str:
        """See Scheduler.submit.

        A submission that the controller did not confirm is looked for by its comment, and never made twice: raises
        SchedulerError where it could not be found in a minute.
        """
        words = ["sbatch", "--parsable"]
        if wanted := self._unmet(script, depends_on, dependency_kind):
            words.append(f"--dependency={':'.join([dependency_kind, *wanted])}")
        if array:
            words.append(f"--array={array}")
        begun = time.time()
        answer = _ask([*words, str(script)])
        job_id = answer.stdout.strip().partition(";")[0]
        if answer.returncode == 0 and re.fullmatch(r"\d+", job_id):
            return job_id
        if not _NO_ANSWER.search(answer.stderr):
            raise SchedulerError(_said("sbatch", answer), where=str(script))
        return self._submitted_after_all(script, answer, begun)

    def _unmet(self, script: Path, depends_on: Sequence[str], kind: str) -> list[str]:
        """The jobs of `depends_on` that sbatch has to be told of.

        slurmctld takes an id that it has forgotten for one that is met, even if that job failed: we look first.
        """
        jobs = self.jobs(depends_on).values() if depends_on else []
        failed = [job for job in jobs if job.state.terminal and not job.state.succeeded and kind == "afterok"]
        if failed:
            text = ", ".join(f"{job.job_id} ({job.state.value})" for job in failed)
            raise UserError(f"depends on jobs that have not succeeded: {text}", where=str(script))
        if unknown := [job.job_id for job in jobs if job.state is State.UNKNOWN]:
            raise SchedulerError(
                f"depends on jobs that Slurm does not know: {', '.join(unknown)}",
                where=str(script),
                hint="Slurm would take them for done; cancel the stage they belong to and resume",
            )
        return [job.job_id for job in jobs if not (job.state.terminal and kind in ("afterok", "afterany"))]

    def _submitted_after_all(self, script: Path, answer: Finished, begun: float) -> str:
        """The id of a job whose submission was not confirmed. `begun` is Unix seconds."""
        comment = parse_script(script.read_text(encoding="utf-8"), where=str(script)).comment
        earliest = begun - _CLOCK_SKEW_SECONDS
        deadline = time.monotonic() + _RECOVERY_SECONDS
        looks = 3  # a controller that answers again may still have the submission to do
        while comment and looks and time.monotonic() < deadline:
            if _controller_answers():
                with suppress(SchedulerError):  # it hangs again
                    if found := [job for job in self.find(comment) if (job.submitted or 0.0) > earliest]:
                        return found[-1].job_id
                    looks -= 1
            time.sleep(1)
        raise SchedulerError(
            _said("sbatch", answer),
            where=str(script),
            hint="the job may exist all the same: `swiftlaunch status` finds it, `swiftlaunch resume` submits what is "
            "missing; " + ("Slurm answers again" if not looks else "Slurm's controller still does not answer"),
        )

    def jobs(self, ids: Sequence[str]) -> dict[str, Job]:
        """See Scheduler.jobs.

        Without accounting (no sacct) a job is known until the controller forgets it, MinJobAge after its end, and
        UNKNOWN afterwards.
        """
        if not ids:
            return {}
        _check_ids(ids)
        masters = sorted({_master(job_id) for job_id in ids}, key=int)
        known = merge(
            self._squeue(["--jobs=" + ",".join(masters)]),
            self._sacct(["--jobs=" + ",".join(masters)]),
        )
        return {job_id: pick(job_id, known) for job_id in ids}

    def find(self, comment: str) -> list[Job]:
        """See Scheduler.find. Looks at this user's jobs of the last 90 days, where Slurm stores comments."""
        known = merge(self._squeue(["--me"]), self._sacct(["--endtime=now", f"--state={_ALL_STATES}"]))
        found = {_master(job.job_id) for job in known if job.comment == comment}
        jobs = [pick(job_id, known) for job_id in sorted(found, key=int)]
        return sorted(jobs, key=lambda job: job.submitted or 0.0)  # ids may start again from 1

    def cancel(self, ids: Sequence[str]) -> None:
        """See Scheduler.cancel."""
        if not ids:
            return
        _check_ids(ids)  # scancel cancels none if one is malformed
        answer = _ask(["scancel", *ids])
        if answer.returncode != 0 and not _only_ended(answer.stderr):
            raise _failure("scancel", answer)

    def _squeue(self, which: Sequence[str]) -> list[Job]:
        # all states: for a while the controller knows how a job ended, where accounting lags or is missing
        answer = _ask(["squeue", "-h", "-r", "--states=all", "-o", SQUEUE_FORMAT, *which])
        if answer.returncode != 0 and "Invalid job id" not in answer.stderr:  # one id asked for, and it is forgotten
            raise _failure("squeue", answer)
        return parse_squeue(answer.stdout)

    def _sacct(self, which: Sequence[str]) -> list[Job]:
        since = time.strftime("%Y-%m-%dT00:00:00", time.localtime(time.time() - _HISTORY_DAYS * SECONDS_PER_DAY))
        try:
            answer = _ask(["sacct", "-P", "-n", "-D", "-X", "-S", since, "-o", SACCT_FIELDS, *which])
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


def _ask(words: Sequence[str]) -> Finished:
    """Run a command of Slurm's. One that gives no answer in time counts as failed, with that as its message."""
    try:
        return run(words, env=_environ(), timeout=TIMEOUT_SECONDS)
    except ProcessTimeout as error:
        return Finished(1, "", error.message)


def _environ() -> dict[str, str]:
    """Our environment, without what shapes the commands' output or describes a job that we may run in."""
    shaping = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_")
    return {
        name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or not name.startswith(shaping)
    }


def _controller_answers() -> bool:
    """Whether slurmctld answers; `scontrol ping` says so at once where squeue would wait."""
    answer = _ask(["scontrol", "ping"])
    return answer.returncode == 0 and " UP" in answer.stdout


def _failure(program: str, answer: Finished) -> SchedulerError:
    """The error of a command that failed, with whose fault it is."""
    hint = ""
    if _NO_ANSWER.search(answer.stderr):
        if _controller_answers():
            hint = "the controller answers `scontrol ping`: it is busy, try again"
        else:
            hint = "the controller does not answer `scontrol ping`; jobs that run go on, try again later"
    return SchedulerError(_said(program, answer), hint=hint)


def _check_ids(ids: Sequence[str]) -> None:
    wrong = [job_id for job_id in ids if not re.fullmatch(r"\d+([_+]\d+)?", job_id)]
    if wrong:
        raise UserError(f"not a Slurm job id: {', '.join(map(repr, wrong))}", hint="ids look like 12, 12_3 or 12+1")


def _master(job_id: str) -> str:
    return re.split("[_+]", job_id)[0]  # of an array, of a heterogeneous job


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
