"""One detached process while there is work: starts jobs when their turn comes, writes into the table how they ended.

It may be killed at any moment. What runs goes on under its stepd, and the next supervisor takes the table as it is.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time

from launcher.scheduler.local import folders, tree
from launcher.scheduler.local.config import Config, load
from launcher.scheduler.local.launch import start_stepd
from launcher.scheduler.local.resources import allocate, depend
from launcher.scheduler.local.table import NEVER, Row, Table


def main(arguments: list[str]) -> int:
    """`supervisor STATE_DIR [LOCK]`: LOCK is the handle of the locked file that the starter hands over."""
    state_dir = arguments[0]
    if len(arguments) > 1:
        lock = int(arguments[1])
    else:
        lock = os.open(folders.supervisor_lock(state_dir), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another supervisor is at work", file=sys.stderr)
            return 1
    os.set_inheritable(lock, False)  # a stepd that held it would look like a supervisor
    os.umask(0o077)
    table = Table(state_dir)  # before the fork: the starter learns if this fails
    table.close()
    if child := os.fork():
        os.ftruncate(lock, 0)
        os.pwrite(lock, tree.identity(child).encode(), 0)
        os._exit(0)
    _Supervisor(state_dir).to_the_end(lock)
    return 0


class _Supervisor:
    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir
        self.table = Table(state_dir)
        self.config: Config = load(state_dir)
        self.stepds: dict[tuple[int, int], subprocess.Popen[bytes]] = {}  # started here, by job and restarts
        self.seen = 0  # version of the table in which no pending job could start

    def to_the_end(self, lock: int) -> None:
        """Until there has been no work for some seconds."""
        idle_since = time.monotonic()
        while True:
            self.config = load(self.state_dir)  # a later submission may have changed the machine
            changed = self._look()
            now = time.monotonic()
            if self.table.has_work():
                idle_since = now
            elif now - idle_since >= self.config.timing.idle:
                # a submitter that comes after this transaction finds the lock open, one before it is seen here
                with self.table.writing():
                    if not self.table.has_work():
                        os.close(lock)
                        return
            if not changed:
                time.sleep(self.config.timing.poll)

    def _look(self) -> bool:
        """One round; whether anything changed."""
        for process in self.stepds.values():
            process.poll()
        for row in self.table.running():
            if self._look_after(row):
                self.seen = 0
        version = self.table.version()
        if version == self.seen:
            return False  # who waits, waits on
        changed = self._start_pending(self.table.unfinished())
        self.seen = 0 if changed else version  # a job that was cancelled here decides on others
        return changed

    def _look_after(self, row: Row) -> bool:
        """A running job: has it ended, has its stepd gone, was it never started?"""
        run_dir = folders.run(self.state_dir, row.id, row.restarts)
        who = folders.read(folders.stepd(run_dir))
        if not who:
            process = self.stepds.get((row.id, row.restarts))
            if process is None:
                self._start(row)
            elif process.returncode is not None and not folders.read(folders.stepd(run_dir)):
                reason = f"stepd did not start, see {folders.supervisor_log(self.state_dir)}"
                self._finish(row, {"cause": "", "status": 1 << 8, "ended": time.time(), "reason": reason})
                return True
            return False
        living = tree.alive(who)
        if text := folders.read(folders.ended(run_dir)):  # read after `living`: a stepd writes, then ends
            self._finish(row, json.loads(text))
            return True
        if not living:
            self._node_failed(row, run_dir)
            return True
        return False

    def _node_failed(self, row: Row, run_dir: str) -> None:
        """The stepd was killed, or the computer went down: all that is left of the job goes too."""
        tree.kill_all(lambda: tree.marked(f"{folders.RUN}={run_dir}"))
        with self.table.writing():
            if self.table.asked(row.id) == "cancel":
                self.table.finish(row.id, "CANCELLED", ended=time.time(), exit_code=0, signal=None, reason="NodeDown")
            elif row.request.requeue:
                self.table.requeue(row.id, "NodeDown")
            else:
                self.table.finish(row.id, "NODE_FAIL", ended=time.time(), exit_code=1, signal=None, reason="NodeDown")
        self._forget(row)

    def _finish(self, row: Row, ended: dict[str, object]) -> None:
        cause, status = str(ended["cause"]), int(str(ended["status"]))
        code = os.waitstatus_to_exitcode(status)
        with self.table.writing():
            asked = self.table.asked(row.id)  # as it is now: a job may have asked just before it ended
            if asked == "requeue":
                self.table.requeue(row.id, "BeginTime")
            else:
                self.table.finish(
                    row.id,
                    _final_state(cause, asked, code),
                    ended=float(str(ended["ended"])),
                    exit_code=max(code, 0),
                    signal=-code if code < 0 else None,
                    reason=str(ended["reason"]) or _reason(cause, code),
                )
        self._forget(row)

    def _forget(self, row: Row) -> None:
        self.stepds.pop((row.id, row.restarts), None)
        if not self.table.submission_needed(row.submission):
            try:
                os.unlink(folders.submission(self.state_dir, row.submission))
            except FileNotFoundError:
                return

    def _start_pending(self, rows: list[Row]) -> bool:
        """Start what can start, first come first served. Whether anything changed."""
        pending = [row for row in rows if row.state == "PENDING"]
        running = [row for row in rows if row.state == "RUNNING"]
        if not pending:
            return False
        parents = self.table.by_ids([job_id for row in pending for _, job_id in row.request.dependencies])
        tasks = {(job_id, parent.task): parent for job_id, rows in parents.items() for parent in rows}
        changed = False
        blocked = ""
        for row in pending:
            reason = depend(row, parents, tasks)
            if reason == NEVER and row.request.kill_on_invalid_dep:
                self.table.reject(row.id, NEVER)
                self._forget(row)
                changed = True
                continue
            if not reason and _array_is_full(row, running):
                reason = "JobArrayTaskLimit"
            if not reason and not (reason := blocked):
                allocation = allocate(row.request, self.config.machine, running)
                if allocation is None:
                    reason, blocked = "Resources", "Priority"
                elif self.table.start(row.id, allocation):
                    started = self.table.by_id(row.id)
                    running.append(started)
                    self._start(started)
                    changed = True
            if reason and reason != row.reason:
                self.table.set_reason(row.id, reason)
        return changed

    def _start(self, row: Row) -> None:
        self.stepds[row.id, row.restarts] = start_stepd(self.state_dir, row.id, row.restarts)


def _array_is_full(row: Row, running: list[Row]) -> bool:
    limit = row.array.get("limit", 0)
    return bool(limit) and sum(other.array_id == row.array_id for other in running) >= limit


def _final_state(cause: str, asked: str, code: int) -> str:
    if cause == "timeout":
        return "TIMEOUT"
    if asked == "cancel" and (cause or code):
        return "CANCELLED"
    return "FAILED" if code else "COMPLETED"


def _reason(cause: str, code: int) -> str:
    if cause == "timeout":
        return "TimeLimit"
    if cause or not code:
        return "None"
    return "NonZeroExitCode" if code > 0 else "RaisedSignal"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
