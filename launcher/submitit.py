"""submitit's cluster "swiftlaunch": `submitit.AutoExecutor(folder, cluster="swiftlaunch")`.

Functions go the way of recipes: a plan, a rendered script, a run that `swiftlaunch runs`, `status`, `logs` and `cancel`
know. submitit finds this module by its entry point, in jobs too, where only words, records and the worker are: what
submits is imported where it is used.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from submitit.core import core, logger, utils

from launcher.errors import Fault, InputError, SchedulerError, UserError
from launcher.plan import CALL
from launcher.record import read_json, write_json
from launcher.rundir import RunDir
from launcher.states import State

if TYPE_CHECKING:
    from launcher.api import Run
    from launcher.planner.call import CallRequest
    from launcher.prepare import Prepared
    from launcher.scheduler import Job

_NOT_YET_SECONDS = 10.0  # for so long a job that was preempted, or lost its node, may not have been put back yet
_AT_ONCE = 256  # of an array, as with submitit's own executor
_ASK_SECONDS = 60  # submitit asks the scheduler after 2, 4, 8 ... s, then so far apart

Kinds = type | tuple[type, ...]

# What update_parameters takes: submitit's own words, then ours, which AutoExecutor wants as swiftlaunch_NAME.
_SHARED: dict[str, Kinds] = {
    "name": str,
    "timeout_min": int,
    "mem_gb": (int, float),
    "nodes": int,
    "tasks_per_node": int,
    "cpus_per_task": int,
    "gpus_per_node": int,
    "stderr_to_stdout": bool,  # always so: a rank has one log
}
_OWN: dict[str, Kinds] = {
    "site": str,
    "environment": str,
    "python": str,
    "partition": str,
    "account": str,
    "qos": str,
    "constraint": str,
    "extra": (list, tuple),
    "array_parallelism": int,
    "checkpoint_minutes": (int, float),
}
_MAY_BE_ZERO = ("gpus_per_node", "checkpoint_minutes", "stderr_to_stdout")
_PLACES = {
    "memory": "mem_gb",
    "time_limit": "timeout_min",
    **{key: f"swiftlaunch_{key}" for key in ("partition", "account", "qos", "constraint", "extra", "environment")},
}


class SwiftlaunchPaths(utils.JobPaths):
    """submitit's files of a job, which lie in its run directory."""

    def __init__(self, folder: Path | str, job_id: str | None = None, task_id: int | None = None) -> None:
        super().__init__(folder, job_id, task_id)
        self.files = RunDir(Path(_read_pointer(Path(folder), str(job_id))["folder"]))

    @property
    def submission_file(self) -> Path:
        return self.files.script(CALL)

    @property
    def submitted_pickle(self) -> Path:
        return self.files.submitted(CALL)

    @property
    def result_pickle(self) -> Path:
        return self.files.returned(CALL, self.task_id)

    @property
    def stdout(self) -> Path:
        """What the task has printed, in its newest attempt."""
        return self.files.rank_log(CALL, max(_attempts(self.files), default=1), self.task_id)

    @property
    def stderr(self) -> Path:
        """What scheduler and job script say; what the task prints to stderr is in its one log, `stdout`."""
        return self.files.batch_log(CALL)


def _pointer(folder: Path, job_id: str) -> Path:
    """The one file that a job has in the executor's folder: it says where its run is."""
    return utils.JobPaths(folder, job_id).folder / f"{job_id}_run.json"


def _read_pointer(folder: Path, job_id: str) -> dict[str, str]:
    """Raises UserError for a job that is not of this folder."""
    known: dict[str, str] | None = read_json(_pointer(folder, job_id))
    if known is None:
        raise UserError(f"no job {job_id} was submitted from here", where=str(folder))
    return known


class Watcher(core.InfoWatcher):
    """How this program's jobs stand at one scheduler, by one question for all of them."""

    def __init__(self, kind: str) -> None:
        super().__init__(delay_s=_ASK_SECONDS)
        self._kind = kind
        self._ended: dict[str, float] = {}  # when a job was first seen ended
        self.folders: dict[str, Path] = {}  # where jobs work

    def update(self) -> None:
        """Ask for every job that has not ended; without an answer what is known stays, with a warning."""
        from launcher.scheduler import default_state_dir, open_scheduler

        waiting = sorted(self._registered - self._finished)
        if waiting:
            self._num_calls += 1
            try:
                jobs = open_scheduler(self._kind, state_dir=default_state_dir()).jobs(waiting)
            except SchedulerError as error:
                logger.get_logger().warning(f"{error}; the states of jobs are those of before")
                jobs = {}
            for job_id, job in jobs.items():
                state = self._proven(job_id, job) if job.state is State.UNKNOWN else job.state
                self._info_dict[job_id] = {"JobID": job_id, "State": state.value, "NodeList": job.nodes}
        self._last_status_check = time.time()
        self._finished.update(job_id for job_id in waiting if self.is_done(job_id, mode="cache"))

    def _proven(self, job_id: str, job: Job) -> State:
        """What the files say of a job that the scheduler does not know: without accounting it forgets what ended."""
        from launcher.standing import stage_status
        from launcher.watch import load_plan

        folder = self.folders.get(job_id)
        if folder is None or not folder.is_dir():
            return job.state
        return stage_status(RunDir(folder), load_plan(folder).stage(CALL), job, []).state

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        """One of swiftlaunch's states (launcher.states), which are Slurm's own words where both have the state."""
        return self.get_info(job_id, mode=mode).get("State") or State.UNKNOWN.value

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        """Whether a job has ended and will not run again."""
        state = State(self.get_state(job_id, mode=mode))
        if not state.terminal:
            self._ended.pop(job_id, None)
            return False
        since = self._ended.setdefault(job_id, time.time())
        returns = state in (State.PREEMPTED, State.NODE_FAIL)
        return not returns or time.time() - since > _NOT_YET_SECONDS


_watchers: dict[str, Watcher] = {}  # by kind of scheduler: their job ids have nothing to do with each other


class SwiftlaunchJob(core.Job[core.R]):
    """A function that was handed in. `run` is its run, as `launcher.submit` gives them."""

    _paths: SwiftlaunchPaths
    _cancel_at_deletion = False  # read by __del__, of a job that was not found too

    def __init__(self, folder: Path | str, job_id: str, tasks: Sequence[int] = (0,)) -> None:
        known = _read_pointer(Path(folder), job_id)
        self._run, self._unit, self._kind = known["run"], known["unit"], known["scheduler"]
        self._works_in = Path(known["folder"])
        super().__init__(folder, job_id, tasks)
        self._paths = SwiftlaunchPaths(folder, job_id=job_id, task_id=self.task_id)

    @property
    def watcher(self) -> Watcher:  # type: ignore[override]
        """The one that asks this job's scheduler."""
        found = _watchers.setdefault(self._kind, Watcher(self._kind))
        found.folders[self.job_id] = self._works_in
        return found

    @property
    def run(self) -> Run:
        """The run that the job is, or is one point of."""
        from launcher.api import open_run

        return open_run(self._run)

    def cancel(self, check: bool = True) -> None:
        """Cancel the job; it is not run again. What it has saved stays."""
        from launcher.submission import cancel

        run = self.run
        cancel(run.run_dir, run.plan, {self._unit: self.job_id})

    def _get_logs_string(self, name: str) -> str | None:
        """All attempts' output, one after the other: the function may have been preempted and gone on."""
        if name != "stdout":
            return super()._get_logs_string(name)
        files = self._paths.files
        logs = [files.rank_log(CALL, attempt, self._paths.task_id) for attempt in _attempts(files)]
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in logs if path.exists()]
        return "".join(texts) if texts else None


class SwiftlaunchExecutor(core.Executor):
    """Submits functions to a site of swiftlaunch's.

    `site` is a site's name or file, by default the one that the command line would choose. `max_num_timeout` is how
    often a callable with `checkpoint` goes on after its time limit. `update_parameters` says what else there is.
    """

    job_class = SwiftlaunchJob

    def __init__(self, folder: Path | str, site: str = "", max_num_timeout: int = 3) -> None:
        super().__init__(folder)
        self.site = site
        self.max_num_timeout = max_num_timeout

    @classmethod
    def affinity(cls) -> int:
        """Only when it is asked for: AutoExecutor without a cluster stays what it was."""
        return 0

    @classmethod
    def _valid_parameters(cls) -> set[str]:
        return set(_OWN)

    def _internal_update_parameters(self, **kwargs: Any) -> None:
        """Note what jobs ask for. Raises InputError for words and values that there are not.

        site: as for the executor. environment: a role of the site, whose interpreter and container run the function
        (it needs submitit and this program's Python version). python: an interpreter; by default this program's.
        partition, account, qos, constraint: as in a recipe's [resources]; by default the site's. extra: further
        sbatch options, a word each. array_parallelism: how many of map_array run at once. checkpoint_minutes: how
        often a callable's checkpoint() is called while it runs, beside the call when it is told to stop; 0: never.
        """
        from launcher.refusals import sbatch_refusal

        faults = []
        for name, value in kwargs.items():
            kinds = {**_SHARED, **_OWN}.get(name)
            if kinds is None:
                faults.append(Fault(name, "no such parameter", "there are " + ", ".join([*_SHARED, *_OWN])))
            elif not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
                faults.append(Fault(name, f"{value!r} is not of the right kind"))
            elif isinstance(value, (int, float)) and value < (0 if name in _MAY_BE_ZERO else 1e-9):
                faults.append(Fault(name, f"{value!r} is too little"))
        faults += [
            Fault("extra", f"{word}: {why}", hint)
            for word in kwargs.get("extra", ())
            for why, hint in [sbatch_refusal(word)]
            if why
        ]
        if kwargs.get("environment", "") and kwargs.get("python", ""):
            faults.append(Fault("python", "the environment has its own interpreter", "give one of the two"))
        if faults:
            raise InputError(faults)
        super()._internal_update_parameters(**kwargs)

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        """Submit one function as a job, several as an array. Raises SwiftlaunchError, and then nothing runs."""
        from launcher.submission import submit

        prepared = self._prepared(delayed_submissions)
        row = submit(prepared, environ=os.environ)
        tasks = range(prepared.plan.stage(CALL).resources.world_size)
        found: list[core.Job[Any]] = []
        for unit, files, job_id in _submitted(row.run_dir):
            where = {"run": row.run_id, "unit": unit, "folder": str(files.root), "scheduler": row.scheduler}
            write_json(_pointer(self.folder, job_id), where)
            found.append(SwiftlaunchJob[Any](self.folder, job_id, tasks))
        return found

    def _prepared(self, submissions: list[utils.DelayedSubmission]) -> Prepared:
        from launcher.calls import prepare_calls

        request = self._request()
        for submission in submissions:
            submission.set_timeout(request.time_limit or 0, self.max_num_timeout)
        function = submissions[0].function
        name = self.parameters.get("name", "") or getattr(function, "__name__", type(function).__name__)
        return prepare_calls(
            request,
            name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "call",
            options={
                "function": f"{type(function).__module__}.{name}",
                "folder": str(self.folder),
                "cwd": os.getcwd(),
                "python_path": _python_path(),
                "PYTHONPATH": os.environ.get("PYTHONPATH"),
                "python_version": list(sys.version_info[:2]),
                "checkpoint_minutes": self.parameters.get("checkpoint_minutes", 0),
            },
            pickled=[cloudpickle.dumps(submission) for submission in submissions],
            at_once=self.parameters.get("array_parallelism", _AT_ONCE),
            site_name=self.parameters.get("site") or self.site,
            home=Path.home(),
            environ=os.environ,
        )

    def _request(self) -> CallRequest:
        from launcher.planner.call import CallRequest

        given = self.parameters
        environment = given.get("environment", "")
        gigabytes = given.get("mem_gb")
        return CallRequest(
            nodes=given.get("nodes", 1),
            tasks_per_node=given.get("tasks_per_node", 1),
            cpus_per_task=given.get("cpus_per_task"),
            gpus_per_node=given.get("gpus_per_node", 0),
            memory=None if gigabytes is None else max(1, int(gigabytes * 1024)),
            time_limit=given.get("timeout_min"),
            partition=given.get("partition", ""),
            account=given.get("account", ""),
            qos=given.get("qos", ""),
            constraint=given.get("constraint", ""),
            extra=tuple(given.get("extra", ())),
            environment=environment,
            python="" if environment else given.get("python") or sys.executable,
            places=_PLACES,
        )


def _submitted(run_dir: Path) -> list[tuple[str, RunDir, str]]:
    """What was submitted, in the order of the functions: what it is called in its run, its folder, its job."""
    from launcher.arrays import noted_jobs, units
    from launcher.sweep import read_sweep
    from launcher.watch import load_plan

    files, plan = RunDir(run_dir), load_plan(run_dir)
    jobs = noted_jobs(plan, files)
    sweep = read_sweep(files)
    if sweep is None:
        return [(CALL, files, jobs[CALL].job_id)]
    found = [unit for unit in units(plan, sweep, files) if unit.files is not None and unit.point is not None]
    found.sort(key=lambda unit: unit.point.number if unit.point else 0)
    return [(unit.name, unit.files or files, jobs[unit.name].job_id) for unit in found]


def _python_path() -> list[str]:
    """Where this program finds its own modules, without what belongs to its interpreter."""
    interpreter = [Path(folder) for folder in (sys.prefix, sys.base_prefix)]
    folders = [os.path.abspath(folder) for folder in ["", *sys.path]]
    own = [folder for folder in folders if not any(Path(folder).is_relative_to(place) for place in interpreter)]
    return list(dict.fromkeys(own))


def _attempts(files: RunDir) -> list[int]:
    names = (path.name.partition("-")[2] for path in files.batch_log(CALL).parent.glob("attempt-*"))
    return sorted(int(name) for name in names)
