"""The call worker: one Python function of somebody's program, handed in through submitit.

The function lies pickled in the stage's folder; every rank calls it and leaves its result there, in submitit's form.
A callable with submitit's `checkpoint` method keeps its state when the job is told to stop: rank 0 calls it in the
signal handler, for TERM (preemption, where Slurm grants no more than KillWait) as for USR2 (the time limit), and the
pickle is replaced by one of the new state before the job asks to be run again.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.work.context import EXIT_REQUEUE, Context, Requeue
from launcher.work.ending import end_process

_POLL_SECONDS = 0.2
_NEAR_THE_END_SECONDS = 200  # a stop with less time left than this is the time limit's


class _Stopped(BaseException):
    """Leaves the function where a signal found it. No Exception: a function that catches those must not catch this."""


def run(context: Context) -> None:
    """Call the function; its result, or its traceback, is pickled beside it."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # people read along, and ranks get killed
    options = context.options
    _as_submitted(options)
    call = _Call(context)
    call.result_file.unlink(missing_ok=True)
    started = time.monotonic()
    try:
        call.load()
        call.catch_signals()
        outcome = ("success", call.submission.result())
        call.over = True
        _write(call.result_file, _pickled(outcome))
        _succeeded(context, context.rank).touch()
    except _Stopped as stop:
        if call.given_up:
            _write(call.result_file, pickle.dumps(("error", call.given_up)))
            raise WorkerError(call.given_up, hint="raise timeout_min, or the executor's max_num_timeout") from None
        raise Requeue(str(stop)) from None
    except BaseException:
        call.over = True
        _write(call.result_file, pickle.dumps(("error", traceback.format_exc())))
        raise
    if context.is_main:
        _wait_for_the_others(context)
        context.finish(metrics={"seconds": time.monotonic() - started}, artifacts={"result": str(call.result_file)})
    atexit._run_exitfuncs()  # this process ends without them; the function's libraries may count on theirs


class _Call:
    """The pickled function of one rank, and what a signal does to it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.submitted_file = context.files.submitted(context.stage.name)
        self.result_file = context.files.returned(context.stage.name, context.rank)
        # rank 0 has heeded the signal: the others may go
        self._heeded = context.files.attempt(context.stage.name, context.attempt) / "heeded"
        self.submission: Any = None  # submitit's DelayedSubmission
        self.over = False  # the function has ended: a signal comes too late to matter
        self.given_up = ""  # why the function is not called again

    def load(self) -> None:
        """Raises WorkerError where this interpreter cannot."""
        pickled_by = tuple(self.context.options["python_version"])
        if sys.version_info[:2] != pickled_by:
            ours, theirs = (".".join(map(str, version)) for version in (sys.version_info[:2], pickled_by))
            raise WorkerError(
                f"the function was pickled by Python {theirs}, {sys.executable} is {ours}",
                hint="submit with the same Python, or choose another swiftlaunch_python or swiftlaunch_environment",
            )
        try:
            import submitit  # noqa: F401  what was pickled is an object of its
        except ModuleNotFoundError:
            raise WorkerError(
                f"{sys.executable} has no submitit", hint="install it there: pip install submitit"
            ) from None
        with self.submitted_file.open("rb") as file:
            self.submission = pickle.load(file)  # noqa: S301  the user's own, from the user's own folder

    def catch_signals(self) -> None:
        signal.signal(signal.SIGUSR2, self._stop)
        signal.signal(signal.SIGTERM, self._stop)
        if seconds := self.context.options["checkpoint_minutes"] * 60:
            signal.signal(signal.SIGALRM, self._save_now)
            signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        early, self.context.stop_signal = self.context.stop_signal, 0
        if early:  # while the function was loaded
            self._stop(early, None)

    def _stop(self, number: int, frame: object) -> None:
        """Save, then leave the function. Other ranks work on until rank 0 has saved: it may be waiting for them."""
        if self.context.stop_requested:
            return
        self.context.stop_signal = number
        signal.setitimer(signal.ITIMER_REAL, 0)
        name = signal.Signals(number).name
        if not self.context.is_main:
            threading.Thread(target=self._leave_after_rank_0, args=(name,), daemon=True).start()
            return
        try:
            if self.over:
                return
            self.given_up = self._save(timed_out=self._at_the_limit())
        finally:
            self._heeded.touch()
        print(f"swiftlaunch: {self.given_up or name + ', state saved'}", flush=True)
        raise _Stopped(name)

    def _save_now(self, number: int, frame: object) -> None:
        """What checkpoint_minutes asks for; a callable that gives nothing to save is left alone."""
        if not self.context.is_main or self.over:
            return
        try:
            self._save(timed_out=False)
        except Exception:
            traceback.print_exc()  # the function goes on: the next time may do better

    def _save(self, *, timed_out: bool) -> str:
        """Put the state in the place of the pickle; why there will be no other call, "" if there will be."""
        submission = self.submission
        left = submission._timeout_countdown - timed_out
        function = submission.function
        if not hasattr(function, "checkpoint") and not hasattr(function, "__submitit_checkpoint__"):
            return "not done at its time limit, and it has no checkpoint()" if timed_out else ""
        state = submission._checkpoint_function()
        if state is None:
            return "its checkpoint() returned None"
        state.set_timeout(submission._timeout_min, left)
        _write(self.submitted_file, _pickled(state))
        self.context.files.saved(self.context.stage.name, self.context.attempt).touch()
        return "not done, and its time limit came once too often" if left < 0 else ""

    def _at_the_limit(self) -> bool:
        end_time = self.context.end_time
        if end_time is None:
            return self.context.stop_signal == signal.SIGUSR2
        return end_time - time.time() < _NEAR_THE_END_SECONDS

    def _leave_after_rank_0(self, name: str) -> None:
        while not self._heeded.exists():
            time.sleep(_POLL_SECONDS)
        self.context.event("attempt_ended", outcome="requeued", exit_code=EXIT_REQUEUE, error=name)
        sys.stdout.flush()
        end_process(EXIT_REQUEUE)


def _as_submitted(options: dict[str, Any]) -> None:
    """Folder, module path and variables as the function knew them, and those that submitit's own jobs have."""
    os.chdir(options["cwd"])
    sys.path += [folder for folder in options["python_path"] if folder not in sys.path]
    if options["PYTHONPATH"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = options["PYTHONPATH"]
    # submitit.JobEnvironment reads Slurm's variables; the local scheduler sets the same
    os.environ.update(SUBMITIT_EXECUTOR="slurm", SUBMITIT_FOLDER=options["folder"])


def _succeeded(context: Context, rank: int) -> Path:
    """Says that a rank's function has returned in this attempt; its result may be an error, or an earlier attempt's."""
    return context.files.attempt(context.stage.name, context.attempt) / f"returned-{rank}"


def _wait_for_the_others(context: Context) -> None:
    """Rank 0 says that the stage is done: not before every rank has succeeded. One that fails ends this rank too."""
    signs = [_succeeded(context, rank) for rank in range(context.world_size)]
    while not all(path.exists() for path in signs):
        if context.stop_requested:
            raise Requeue(signal.Signals(context.stop_signal).name)
        time.sleep(_POLL_SECONDS)


def _pickled(value: Any) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return data


def _write(path: Path, data: bytes) -> None:
    """Replace the file; a job that is killed meanwhile leaves the old one."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
