"""The local scheduler as the rest of swiftlaunch sees it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.errors import Fault, InputError, UserError
from launcher.record import write_text
from launcher.scheduler.base import Job, Machine, Use, whole_array, with_kind
from launcher.scheduler.local import environment, folders, launch
from launcher.scheduler.local.config import Timing, remember
from launcher.scheduler.local.resources import too_much
from launcher.scheduler.local.script import DEPENDENCIES, MAX_ARRAY, parse_array, parse_dependencies, parse_script
from launcher.scheduler.local.table import Row, Table
from launcher.states import State


class LocalScheduler:
    """Jobs on this computer. Nothing has to be started: whoever submits or reads jobs starts the supervisor."""

    def __init__(self, state_dir: Path, *, machine: Machine | None = None, timing: Timing | None = None) -> None:
        if sys.platform != "linux":
            raise UserError("the local scheduler needs Linux (it reads /proc)", hint="submit on a Linux computer")
        self._state_dir = str(state_dir.expanduser().resolve())
        self._table = Table(self._state_dir)
        self._machine = remember(Path(self._state_dir), machine, timing).machine
        launch.write_shims(self._state_dir)

    def submit(
        self,
        script: Path,
        *,
        depends_on: Sequence[str] = (),
        dependency_kind: str = "afterok",
        array: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> str:
        """See Scheduler.submit. The job gets the submitter's environment (sbatch --export=ALL) and folder."""
        where = str(script)
        try:
            text = script.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read: {error}", where=where) from None
        request = parse_script(text, where=where)
        request = replace(
            request,
            name=request.name or script.name,
            array=array or request.array,
            dependencies=(*request.dependencies, *_dependencies(dependency_kind, depends_on)),
        )
        try:
            tasks, limit = parse_array(request.array) if request.array else (None, 0)
        except ValueError as error:
            raise UserError(str(error), where="--array") from None
        faults = too_much(request, self._machine, where)
        known = self._table.by_ids([job_id for _, job_id in request.dependencies])
        faults += [Fault(where, f"depends on job {job_id}, which is unknown") for job_id in known if not known[job_id]]
        if faults:
            raise InputError(faults)
        umask = os.umask(0)
        os.umask(umask)
        given = os.environ if environ is None else environ
        submission = json.dumps({"environment": environment.submitted(given), "umask": umask})
        with self._table.writing():
            ids = self._table.insert(request, os.getcwd(), tasks, limit)
            # before the rows can be seen: a job that starts finds them
            write_text(Path(folders.script(self._state_dir, ids[0])), text, mode=0o700)
            write_text(Path(folders.submission(self._state_dir, ids[0])), submission, mode=0o600)
        launch.start_supervisor(self._state_dir)
        return str(ids[0])

    def largest_array(self) -> int:
        """See Scheduler.largest_array."""
        return MAX_ARRAY

    def jobs(self, ids: Sequence[str], *, since: float | None = None) -> dict[str, Job]:
        """See Scheduler.jobs. Starts the supervisor where one was killed while there is work."""
        self._pick_up()
        found = self._table.by_ids(ids)
        return {job_id: _job(job_id, found[job_id]) for job_id in ids}

    def find_all(self, comments: Sequence[str], *, since: float | None = None) -> dict[str, list[Job]]:
        """See Scheduler.find_all."""
        return {comment: self.find(comment) for comment in comments}

    def find(self, comment: str, *, since: float | None = None) -> list[Job]:
        """See Scheduler.find."""
        self._pick_up()
        return _whole(self._table.by_comment(comment))

    def find_below(self, prefix: str, *, since: float | None = None) -> list[Job]:
        """See Scheduler.find_below."""
        self._pick_up()
        return _whole(self._table.by_start_of_comment(prefix))

    def use(self, ids: Sequence[str], *, since: float | None = None) -> list[Use]:
        """See Scheduler.use. Only runs that have ended are known."""
        found = []
        for row in (row for rows in self._table.by_ids(ids).values() for row in rows):
            for number in range(row.restarts + 1):
                text = folders.read(folders.ended(folders.run(self._state_dir, row.id, number)))
                ended = json.loads(text) if text else {}
                if "seconds" in ended:
                    state = State(row.state) if number == row.restarts else State.REQUEUED
                    found.append(_use(row, state, ended))
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        """See Scheduler.cancel. Raises UserError for ids that do not exist, after the others were cancelled."""
        found = self._table.by_ids(ids)
        for row in (row for rows in found.values() for row in rows):
            self._table.cancel(row.id)
        self._pick_up()
        if unknown := [job_id for job_id in ids if not found[job_id]]:
            raise UserError(f"unknown to the local scheduler: job {', '.join(unknown)}", where=self._state_dir)

    def _pick_up(self) -> None:
        if self._table.has_work():
            launch.start_supervisor(self._state_dir)


def _dependencies(kind: str, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
    if not ids:
        return ()
    try:
        return parse_dependencies(",".join(":".join(with_kind(job_id, kind)) for job_id in ids))
    except ValueError as error:
        raise UserError(str(error), where="--dependency", hint=f"kinds: {', '.join(DEPENDENCIES)}") from None


def _use(row: Row, state: State, ended: Mapping[str, Any]) -> Use:
    need = row.request
    return Use(
        job_id=row.job_id,
        state=state,
        seconds=float(ended["seconds"]),
        nodes=need.nodes,
        cpus=need.nodes * need.cpus_per_node,
        gpus=need.nodes * need.gpus_per_node,
        memory_mib=need.memory_mib or None,
        limit_seconds=need.time_limit_seconds or None,
        cpu_seconds=float(ended["cpu_seconds"]),
        peak_mib=float(ended["largest_process_mib"]) * need.tasks_per_node,
    )


def _whole(rows: Sequence[Row]) -> list[Job]:
    """The jobs, arrays as one."""
    whole: dict[str, list[Row]] = {}
    for row in rows:
        whole.setdefault(str(row.submission), []).append(row)
    return [_job(job_id, tasks) for job_id, tasks in whole.items()]


def _job(job_id: str, rows: Sequence[Row]) -> Job:
    jobs = [
        Job(
            job_id=row.job_id,
            name=row.name,
            state=State(row.state),
            exit_code=row.exit_code,
            signal=row.signal,
            restarts=row.restarts,
            nodes=environment.nodelist(row),
            reason="" if row.reason == "None" else row.reason,
            submitted=row.submitted,
            started=row.started,
            ended=row.ended,
            comment=row.comment,
        )
        for row in rows
    ]
    if not jobs:
        return Job(job_id)
    return whole_array(job_id, jobs) if job_id == str(rows[0].array_id) else jobs[0]
