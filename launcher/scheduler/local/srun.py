"""`srun` as jobs of the local scheduler find it: starts the tasks of a step, hands signals on, ends them together.

Steps of one job share its CPUs, and its GPUs unless they say how many they want: then each has its own, and waits
for them. Imports are few: this starts with every step.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from typing import Any

from launcher.scheduler.local import folders, names, tree
from launcher.scheduler.local.hostlist import compress
from launcher.scheduler.local.placement import count, gpus_wanted, options, place, share_gpus

HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def _gpus_taken(folder: str) -> set[int]:
    """GPUs that living steps of the job have for themselves."""
    taken: set[int] = set()
    for name in os.listdir(folder):
        if name.endswith(".gpus") and tree.alive(folders.read(os.path.join(folder, name.removesuffix(".gpus")))):
            taken.update(json.loads(folders.read(os.path.join(folder, name)) or "[]"))
    return taken


class Step:
    """A job step while it runs."""

    def __init__(
        self, given: dict[str, str], command: list[str], run_dir: str, environ: dict[str, str], caught: list[int]
    ) -> None:
        self.given = given
        self.command = command
        self.environ = environ
        with open(folders.allocation(run_dir), encoding="utf-8") as file:
            job = json.load(file)
        self.job_id = job["job_id"]
        self.kill_wait = float(job["step_kill_wait"])
        self.number, self.path = _claim_step(run_dir)
        self.placed = place(given, job["nodes"], environ)
        if (wanted := gpus_wanted(given)) is not None:
            used = {task["node"] for tasks in self.placed for task in tasks}
            nodes = [node for node in job["nodes"] if node["name"] in used]
            own = {node["name"]: node for node in self._own_gpus(nodes, wanted, caught)}
            self.placed = place(given, [own.get(node["name"], node) for node in job["nodes"]], environ)
        self.ranks: dict[int, int] = {}  # pid -> rank, of the tasks that still run
        self.groups: set[int] = set()
        self.files: dict[str, int] = {}
        self.pipes: dict[int, tuple[int, bytearray, int]] = {}  # read end -> rank, unfinished line, where it goes
        self.code = 0  # of the first task that failed
        self.ending = False
        self.kill_at = float("inf")

    def _own_gpus(self, nodes: list[dict[str, Any]], wanted: int, caught: list[int]) -> list[dict[str, Any]]:
        """The nodes with GPUs that no other living step has; waits until there are enough."""
        folder = os.path.dirname(self.path)
        while True:
            with open(os.path.join(folder, "gpus.lock"), "w", encoding="utf-8") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                mine = share_gpus(nodes, wanted, _gpus_taken(folder))
                if mine is not None:
                    with open(f"{self.path}.gpus", "w", encoding="utf-8") as file:
                        json.dump([gpu for node in mine for gpu in node["gpus"]], file)
                    return mine
            time.sleep(0.1)
            if caught:
                raise SystemExit(128 + caught[0])

    def start(self) -> None:
        """Start all tasks, those of a node in a process group of their own."""
        total = sum(len(tasks) for tasks in self.placed)
        common = {
            **self.environ,
            folders.STEP: self.path,
            "SLURM_STEP_ID": str(self.number),
            "SLURM_STEPID": str(self.number),
            "SLURM_NTASKS": str(total),
            "SLURM_NPROCS": str(total),
            "SLURM_STEP_NUM_TASKS": str(total),
            "SLURM_STEP_NUM_NODES": str(len(self.placed)),
            "SLURM_NNODES": str(len(self.placed)),
            "SLURM_STEP_NODELIST": compress([tasks[0]["node"] for tasks in self.placed]),
        }
        if "cpus-per-task" in self.given:
            common["SLURM_CPUS_PER_TASK"] = str(count(self.given, "cpus-per-task", 1))
        rank = 0
        for node_id, tasks in enumerate(self.placed):
            group = 0
            for local_id, task in enumerate(tasks):
                variables = {
                    **common,
                    "SLURM_PROCID": str(rank),
                    "SLURM_LOCALID": str(local_id),
                    "SLURM_NODEID": str(node_id),
                    "SLURMD_NODENAME": task["node"],
                    "SLURM_TASKS_PER_NODE": str(len(tasks)),
                }
                if task["gpus"]:
                    gpus = ",".join(map(str, task["gpus"]))
                    variables["CUDA_VISIBLE_DEVICES"] = variables["SLURM_STEP_GPUS"] = gpus
                pid = self._fork(rank, node_id, task["node"], group, variables)
                group = group or pid
                self.ranks[pid] = rank
                rank += 1
            self.groups.add(group)
        for handle in self.files.values():
            os.close(handle)

    def _fork(self, rank: int, node_id: int, node: str, group: int, variables: dict[str, str]) -> int:
        letters = {"j": self.job_id, "s": self.number, "t": rank, "n": node_id, "N": node}
        letters["J"] = f"{self.job_id}.{self.number}"
        if "SLURM_ARRAY_JOB_ID" in variables:
            letters |= {"A": variables["SLURM_ARRAY_JOB_ID"], "a": variables["SLURM_ARRAY_TASK_ID"]}
        stdout = self._stream("output", letters, 1)
        stderr = self._stream("error", letters, 2) if "error" in self.given else stdout
        stderr = 2 if stderr == 1 else stderr
        handles, readers = [stdout, stderr], []
        if "label" in self.given:
            for index, target in enumerate((stdout, stderr)):
                reader, handles[index] = os.pipe()
                readers.append(reader)
                self.pipes[reader] = (rank, bytearray(), os.dup(target))
        own = os.getpid()
        pid = os.fork()
        if pid:
            _join(pid, group)
            if readers:
                os.close(handles[0])
                os.close(handles[1])
            return pid
        try:
            tree.prctl(tree.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != own:
                os._exit(1)
            _join(0, group)
            tree.reset_signals()
            signal.set_wakeup_fd(-1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(handles[0], 1)
            os.dup2(handles[1], 2)
            os.chdir(self.given.get("chdir", "."))
            os.execvpe(self.command[0], self.command, variables)  # noqa: S606
        except OSError as error:
            os.write(2, f"srun: error: cannot run {self.command[0]}: {error.strerror}\n".encode())
            os._exit(13 if isinstance(error, PermissionError) else 2)
        finally:
            os._exit(127)

    def _stream(self, option: str, letters: dict[str, Any], inherited: int) -> int:
        if option not in self.given:
            return inherited
        path = names.fill(self.given[option], letters)
        if path not in self.files:
            mode = os.O_APPEND if self.given.get("open-mode") == "append" else os.O_APPEND | os.O_TRUNC
            self.files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | mode, 0o666)
        return self.files[path]

    def wait(self, caught: list[int], wake: int) -> int:
        """Until no task runs. Returns the exit code of the first task that failed, 128 + signal for a killed one."""
        while self.ranks or self.pipes:
            self._read(wake)
            while caught:
                self.signal_tasks(caught.pop(0))
            for pid, status in tree.reap().items():
                if pid in self.ranks:
                    self._task_ended(self.ranks.pop(pid), os.waitstatus_to_exitcode(status))
            if time.monotonic() >= self.kill_at and self.ranks:
                for pid in tree.marked(f"{folders.STEP}={self.path}"):
                    tree.kill(pid, signal.SIGKILL)
            if not self.ranks and self.pipes and not tree.marked(f"{folders.STEP}={self.path}"):
                self._read(wake)  # the last words, then nobody is left who could write
                break
        return self.code

    def _read(self, wake: int) -> None:
        ready, _, _ = select.select([wake, *self.pipes], [], [], 0.5 if self.ranks else 0.05)
        for handle in ready:
            if handle == wake:
                os.read(wake, 512)
                continue
            rank, line, target = self.pipes[handle]
            chunk = os.read(handle, 65536)
            line += chunk if chunk else b"\n" if line else b""
            while (end := line.find(b"\n")) >= 0:
                os.write(target, b"%d: %b" % (rank, bytes(line[: end + 1])))
                del line[: end + 1]
            if not chunk:
                del self.pipes[handle]
                os.close(handle)

    def signal_tasks(self, number: int) -> None:
        """To the tasks alone: their helpers are theirs to end."""
        for pid in self.ranks:
            tree.kill(pid, number)

    def _task_ended(self, rank: int, code: int) -> None:
        if code == 0:
            return
        code = code if code > 0 else 128 - code
        if not self.ending:
            how = f"killed by {signal.Signals(code - 128).name}" if code > 128 and _is_signal(code - 128) else ""
            print(f"srun: error: task {rank}: {how or f'exited with exit code {code}'}", file=sys.stderr, flush=True)
        self.code = self.code or code
        if self.given.get("kill-on-bad-exit", "0") != "0" and not self.ending:
            self.ending = True
            self.kill_at = time.monotonic() + self.kill_wait
            self.signal_tasks(signal.SIGTERM)


def _is_signal(number: int) -> bool:
    return number in set(signal.Signals)


def _join(pid: int, group: int) -> None:
    """Both sides of the fork do this, so that it is done before either goes on."""
    try:
        os.setpgid(pid, group)
    except OSError:
        return  # the other side was first, or the task has ended


def _claim_step(run_dir: str) -> tuple[int, str]:
    number, who = 0, tree.identity(os.getpid())
    while not folders.claim(path := os.path.join(folders.steps(run_dir), str(number)), who):
        number += 1
    return number, path


def main(arguments: list[str]) -> int:
    """`srun OPTIONS COMMAND`."""
    environ = dict(os.environ)
    run_dir = environ.get(folders.RUN, "")
    if not run_dir:
        print("srun: error: this is the local scheduler's srun, it works inside its jobs only", file=sys.stderr)
        return 1
    caught: list[int] = []
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in (*HANDED_ON, signal.SIGCHLD):
        signal.signal(number, lambda number, frame: None if number == signal.SIGCHLD else caught.append(number))
    try:
        step = Step(*options(arguments), run_dir, environ, caught)
        step.start()
    except (ValueError, OSError) as error:
        print(f"srun: error: {error}", file=sys.stderr)
        return 1
    return step.wait(caught, wake)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
