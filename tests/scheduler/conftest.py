"""A local scheduler of its own for each test, impatient, with a check that nothing of it is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.scheduler.base import Job, Machine
from launcher.scheduler.local import folders, tree
from launcher.scheduler.local.client import LocalScheduler
from launcher.scheduler.local.config import Timing

DEADLINE_SECONDS = 60.0  # the machine may be busy


def until(ready: Callable[[], object], what: str) -> None:
    """Poll until `ready` returns something true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS:.0f} s for {what}"
        time.sleep(0.02)


@dataclass
class Desk:
    """What a test works with: the scheduler, and a folder for scripts and their output."""

    scheduler: LocalScheduler
    folder: Path
    state_dir: Path

    def script(self, body: str, *directives: str) -> Path:
        """A batch script; its output goes to JOBID.log in the folder."""
        path = self.folder / f"script-{len(list(self.folder.glob('script-*')))}.sh"
        lines = [f"--output={self.folder}/%j.log", "--open-mode=append", *directives]
        path.write_text("#!/bin/bash\n" + "".join(f"#SBATCH {line}\n" for line in lines) + body + "\n")
        return path

    def submit(self, body: str, *directives: str, depends_on: Sequence[str] = ()) -> str:
        return self.scheduler.submit(self.script(body, *directives), depends_on=depends_on)

    def job(self, job_id: str) -> Job:
        return self.scheduler.jobs([job_id])[job_id]

    def log(self, job_id: str) -> str:
        path = self.folder / f"{job_id}.log"
        return path.read_text() if path.exists() else ""

    def end(self, job_id: str) -> Job:
        """Wait until the job has ended."""
        until(lambda: self.job(job_id).state.terminal, f"the end of job {job_id}, {self.job(job_id)}")
        return self.job(job_id)

    def wait_for(self, job_id: str, text: str) -> None:
        """Wait until the job has written a text."""
        until(lambda: text in self.log(job_id), f"{text!r} of job {job_id}; its log: {self.log(job_id)}")

    def processes(self, job_id: str, run: int = 0) -> set[int]:
        run_dir = folders.run(str(self.state_dir), int(job_id), run)
        return tree.marked(f"{folders.RUN}={run_dir}")

    def stepd(self, job_id: str, run: int = 0) -> str:
        return folders.read(folders.stepd(folders.run(str(self.state_dir), int(job_id), run)))

    def supervisor(self) -> str:
        return folders.read(folders.supervisor_lock(str(self.state_dir)))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    state_dir = tmp_path / "state"
    timing = Timing(poll=0.02, kill_wait=2.0, step_kill_wait=1.5, idle=0.3)
    scheduler = LocalScheduler(state_dir, machine=Machine(nodes=4, cpus=2, memory_mib=8000), timing=timing)
    desk = Desk(scheduler, tmp_path, state_dir)
    yield desk
    ids = [path.name for path in (state_dir / "jobs").glob("*")]
    scheduler.cancel(ids)
    for job_id in ids:
        if job_id.isdigit():
            until(lambda job_id=job_id: desk.job(job_id).state.terminal, f"the end of job {job_id}")
    until(lambda: not tree.alive(desk.supervisor()), "the supervisor to end by itself")
    left = {
        pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if str(state_dir).encode() in _environ(pid)
    }
    for pid in left:
        tree.kill(pid, signal.SIGKILL)
    assert not left, "processes of jobs are left"
    assert "Traceback" not in (state_dir / "supervisor.log").read_text() if ids else True


def _environ(pid: int) -> bytes:
    state = tree.stat(pid)
    try:
        return Path(f"/proc/{pid}/environ").read_bytes() if state and state[0] not in "ZX" else b""
    except OSError:
        return b""
