"""One process per running job, as slurmstepd: starts the batch shell, keeps the time limit, writes how it ended.

It needs no supervisor: whatever is killed around it, the job runs on, ends in time, and its exit code is kept.
"""

from __future__ import annotations

import getpass
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

from launcher.record import write_json
from launcher.scheduler.local import environment, folders, names, tree
from launcher.scheduler.local.config import Config, load
from launcher.scheduler.local.hostlist import node_name
from launcher.scheduler.local.table import Row, Table


def main(arguments: list[str]) -> int:
    """`stepd STATE_DIR JOB RESTARTS`."""
    state_dir, number, restarts = arguments[0], int(arguments[1]), int(arguments[2])
    table = Table(state_dir)
    row = table.by_id(number)
    run_dir = folders.run(state_dir, number, restarts)
    os.makedirs(folders.steps(run_dir), exist_ok=True)
    if row.state != "RUNNING" or row.restarts != restarts:
        return 0  # cancelled or started again meanwhile
    if not folders.claim(folders.stepd(run_dir), tree.identity(os.getpid())):
        return 0  # a second start of the same run, by a supervisor that could not know of the first
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)  # a closed terminal or an orderly shutdown does not end a job
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    tree.prctl(tree.PR_SET_CHILD_SUBREAPER, 1)
    run = _Run(table, row, load(state_dir), state_dir, run_dir)
    write_json(Path(folders.ended(run_dir)), run.to_the_end())
    return 0


class _Run:
    """One run of one job, from the start of its batch shell to the end of its last process."""

    def __init__(self, table: Table, row: Row, config: Config, state_dir: str, run_dir: str) -> None:
        self.table = table
        self.row = row
        self.config = config
        self.state_dir = state_dir
        self.run_dir = run_dir
        self.status: int | None = None  # wait status of the batch shell
        self.cause = ""  # why we end it: cancel, requeue or timeout
        self.kill_at = float("inf")
        self.told: set[int] = set()  # processes that got TERM from us
        self.cleaned: set[str] = set()  # steps without processes
        limit = row.request.time_limit_seconds
        self.limit_at = environment.end_time(row) if limit else float("inf")
        self.warn_at = self.limit_at - row.request.signal_seconds if row.request.signal else float("inf")

    def to_the_end(self) -> dict[str, object]:
        """What to write about the run: cause, wait status, time of the end (Unix seconds), reason, what it used."""
        try:
            batch = self._start_batch()
        except OSError as error:
            return {"cause": "", "status": 1 << 8, "ended": time.time(), "reason": f"cannot start: {error}"}
        started = time.time()
        while self.status is None:
            self._look(batch)
        ended = time.time()
        self.kill_at = min(self.kill_at, ended + self.config.timing.kill_wait)
        while self._processes() and time.time() < self.kill_at:
            self._terminate()
            self._wait()
        left = tree.kill_all(self._processes)
        reason = f"processes {sorted(left)} do not end" if left else ""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # of all that has ended below us
        return {
            "cause": self.cause,
            "status": self.status,
            "ended": ended,
            "reason": reason,
            "seconds": ended - started,
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "largest_process_mib": used.ru_maxrss / 1024,
        }

    def _look(self, batch: int) -> None:
        self.status = self._wait().get(batch)
        now = time.time()
        if self.status is not None:
            return
        self._clean_steps()
        if not self.cause:
            self.cause = self.table.asked(self.row.id) or ("timeout" if now >= self.limit_at else "")
            if self.cause:
                self.kill_at = now + self.config.timing.kill_wait
                self._terminate()
            elif now >= self.warn_at:
                self.warn_at = float("inf")
                self._warn(batch)
        if now >= self.kill_at:
            for pid in self._processes():
                tree.kill(pid, signal.SIGKILL)

    def _wait(self) -> dict[int, int]:
        signal.sigtimedwait({signal.SIGCHLD}, self.config.timing.poll)
        return tree.reap()

    def _warn(self, batch: int) -> None:
        number = self.row.request.signal
        if self.row.request.signal_batch:
            tree.kill(batch, number)
        else:
            for who in self._steps().values():
                tree.send(who, number)  # srun hands it to its tasks

    def _terminate(self) -> None:
        """TERM, once, for all that is not part of a step; a step's srun hands it to its tasks, and to them alone.

        A rank's helpers (data loaders, checkpoint writers) get no TERM, so a rank can still save what it has.
        """
        in_steps: set[int] = set()
        for who in self._steps().values():
            if tree.alive(who):
                in_steps |= tree.descendants(int(who.split()[0]))
        for pid in self._processes() - in_steps - self.told:
            tree.kill(pid, signal.SIGTERM)
            self.told.add(pid)

    def _processes(self) -> set[int]:
        return tree.descendants(os.getpid()) | tree.marked(f"{folders.RUN}={self.run_dir}")

    def _steps(self) -> dict[str, str]:
        """Files of the steps that may have processes, and the identities of their srun."""
        folder = folders.steps(self.run_dir)
        paths = (os.path.join(folder, name) for name in os.listdir(folder) if name.isdigit())
        return {path: folders.read(path) for path in paths if path not in self.cleaned}

    def _clean_steps(self) -> None:
        """What a step leaves behind ends with its srun, also when srun itself was killed."""
        for path, who in self._steps().items():
            if not tree.alive(who):
                tree.kill_all(lambda entry=f"{folders.STEP}={path}": tree.marked(entry))  # type: ignore[misc]
                self.cleaned.add(path)

    def _start_batch(self) -> int:
        row = self.row
        with open(folders.submission(self.state_dir, row.submission), encoding="utf-8") as file:
            submission = json.load(file)
        variables = environment.batch(row, self.config, state_dir=self.state_dir, base=submission["environment"])
        nodes = [{"name": node_name(index), "gpus": gpus} for index, gpus in sorted(row.allocation.items())]
        write_json(
            Path(folders.allocation(self.run_dir)),
            {"nodes": nodes, "job_id": row.id, "step_kill_wait": self.config.timing.step_kill_wait},
        )
        script = folders.script(self.state_dir, row.submission)
        os.chdir(os.path.join(row.directory, row.request.directory))
        os.umask(submission["umask"])
        stdout = self._open(row.request.output or ("slurm-%j.out" if row.task is None else "slurm-%A_%a.out"))
        stderr = self._open(row.request.error) if row.request.error else stdout
        os.umask(0o077)
        own = os.getpid()
        child = os.fork()
        if child:
            return child
        try:
            tree.prctl(tree.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != own:
                os._exit(1)
            os.setsid()
            tree.reset_signals()
            os.umask(submission["umask"])
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            os.execve(script, [script], variables)  # noqa: S606
        except BaseException as error:
            os.write(stderr, f"swiftlaunch: cannot start the batch script: {error}\n".encode())
        finally:
            os._exit(127)

    def _open(self, pattern: str) -> int:
        row = self.row
        path = names.fill(
            pattern,
            {
                "j": row.id,
                "A": row.array_id or row.id,
                "a": row.task if row.task is not None else 0,
                "x": row.name,
                "u": getpass.getuser(),
                "N": node_name(min(row.allocation)),
                "n": 0,
                "t": 0,
                "s": "batch",
                "J": row.id,
            },
        )
        mode = os.O_APPEND if row.request.append else os.O_TRUNC | os.O_APPEND
        return os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o666)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
