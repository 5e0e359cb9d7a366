#!/usr/bin/env python3
"""A real Slurm cluster on this machine: four slurmd with four fake GPUs each, in a private directory.

    tests/slurm/cluster.py up DIR [--no-accounting]    bring it up (or up again); options count the first time only
    tests/slurm/cluster.py env DIR                     what to eval in a shell before sbatch, squeue, sacct
    tests/slurm/cluster.py status DIR                  its daemons and nodes; exit code 1 if something is down
    tests/slurm/cluster.py down DIR                    end its jobs and daemons; DIR stays

Needs the packages that `tests/system-packages.sh slurm` installs, no privileges. Its parts talk over loopback, on
ports of its own, so several clusters can be up side by side. All configuration is in DIR/etc, all logs in DIR/log.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

NODES, GPUS, CPUS, MEMORY_MIB = 4, 4, 16, 16000
START_SECONDS = 180.0
STOP_SECONDS = 10.0

SLURM_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a requeued job waits as long as its credential lives: two minutes, or what is said here, at least 5 s
AuthInfo=socket={dir}/run/munge.socket,cred_expire=5
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd.%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
MessageTimeout=6
KillWait=5
MinJobAge={min_job_age}
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_resolution=5
PriorityType=priority/basic
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
# what the nodes claim to have counts, not what is found
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] CPUs={cpus} \
RealMemory={memory} Gres=gpu:{gpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=spare Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=patient Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""
ACCOUNTING_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={accounting_port}
AccountingStoragePass={dir}/run/munge.socket
AccountingStoreFlags=job_comment,job_script,job_env
AccountingStorageTRES=gres/gpu
"""
LIMITS_CONF = """\
AccountingStorageEnforce=associations,limits,qos
PriorityType=priority/multifactor
JobAcctGatherFrequency=1
"""
SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={dir}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounting_port}
SlurmUser={user}
LogFile={dir}/log/slurmdbd.log
PidFile={dir}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm
"""


class ClusterError(Exception):
    """The cluster cannot be brought up here; the text says which part and what it said."""


class Cluster:
    """The cluster of one directory. The controller remembers ended jobs for `min_job_age` seconds, and takes a node
    for dead that does not answer for `slurmd_timeout` seconds. With `limits` it keeps the limits and shares that
    sacctmgr sets, and measures memory every second."""

    def __init__(
        self,
        folder: Path,
        *,
        accounting: bool = True,
        limits: bool = False,
        min_job_age: int = 300,
        slurmd_timeout: int = 30,
    ) -> None:
        self.dir = folder.resolve()
        self._settings = {
            **{"accounting": accounting, "limits": limits, "base_port": 0},
            **{"min_job_age": min_job_age, "slurmd_timeout": slurmd_timeout},
        }
        if self._settings_file.exists():
            self._settings = json.loads(self._settings_file.read_text())

    @property
    def _settings_file(self) -> Path:
        return self.dir / "etc/cluster.json"

    @property
    def conf(self) -> Path:
        """What SLURM_CONF must name for Slurm's commands to ask this cluster."""
        return self.dir / "etc/slurm.conf"

    @property
    def accounting(self) -> bool:
        return bool(self._settings["accounting"])

    @property
    def daemons(self) -> list[str]:
        """In the order of their start; `run/NAME.pid` holds the process id of each."""
        database = ["mariadbd", "slurmdbd"] if self.accounting else []
        return ["munged", *database, "slurmctld", *(f"slurmd.{node}" for node in self.nodes)]

    @property
    def nodes(self) -> list[str]:
        return [f"node{number}" for number in range(1, NODES + 1)]

    def up(self) -> None:
        """Start what is not running, and wait until all nodes take jobs."""
        if not self._settings_file.exists():
            self._configure()
        self.start("munged")
        if self.accounting:
            self._start_database()
            self.start("slurmdbd")
        self.start("slurmctld")
        for node in self.nodes:
            self.start(f"slurmd.{node}")
        self._wait(lambda: self._idle_nodes() == NODES, "slurmctld", "all nodes idle")

    def start(self, daemon: str) -> None:
        """Start one daemon unless it runs, and wait until it answers."""
        if self.pid(daemon):
            return
        run, log = self.dir / "run", self.dir / "log"
        (run / f"{daemon}.pid").unlink(missing_ok=True)
        program, _, node = daemon.partition(".")
        commands = {
            "munged": (
                *("munged", "--force", "--num-threads=2", f"--key-file={self.dir}/etc/munge.key"),
                *(f"--socket={run}/munge.socket", f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log"),
                f"--seed-file={run}/munged.seed",
            ),
            "slurmdbd": ("slurmdbd",),
            "slurmctld": ("slurmctld",),
            "slurmd": ("slurmd", "-N", node),
        }
        environ = {"MYSQL_UNIX_PORT": f"{run}/mariadb.socket"} if program == "slurmdbd" else {}
        self._checked(commands[program], environ)
        port = self._settings["base_port"] + {"slurmctld": 0, "slurmdbd": 1}.get(program, 0)
        listens = program in ("slurmctld", "slurmdbd")
        self._wait(lambda: bool(self.pid(daemon)) and (not listens or _open(port)), daemon, "start")

    def stop(self, daemon: str, number: int = signal.SIGTERM) -> None:
        """End one daemon by its process id."""
        if pid := self.pid(daemon):
            _end(pid, number)
        (self.dir / f"run/{daemon}.pid").unlink(missing_ok=True)

    def kill_node(self, node: str) -> None:
        """End a node as a power cut does: its slurmd and every process of its jobs at once, with no last words."""
        log = f"{self.dir}/log/slurmd.{node}.log"
        doomed = {pid for pid in (self.pid(f"slurmd.{node}"), *self._stepds(log)) if pid}
        parents = dict(_parents())
        while found := {pid for pid, parent in parents.items() if parent in doomed} - doomed:
            doomed |= found
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in doomed:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        (self.dir / f"run/slurmd.{node}.pid").unlink(missing_ok=True)

    def leftovers(self) -> list[int]:
        """Processes of jobs of this cluster, on any node."""
        return list(self._leftovers())

    def down(self) -> None:
        """End all jobs and daemons."""
        if not self._settings_file.exists():
            return
        if self.pid("slurmctld"):
            self.command("scancel", "--full", "--user", getpass.getuser())
            deadline = time.monotonic() + STOP_SECONDS
            while time.monotonic() < deadline and self.command("squeue", "-h").stdout.strip():
                time.sleep(0.1)
        for daemon in reversed(self.daemons):
            self.stop(daemon)
            if daemon == f"slurmd.{self.nodes[0]}":
                for pid in self._leftovers():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def pid(self, daemon: str) -> int:
        """The process id of a daemon of this cluster, 0 if it does not run."""
        try:
            pid = int((self.dir / f"run/{daemon}.pid").read_text())
            status = Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return 0
        name, state = (_field(status, key) for key in ("Name", "State"))
        return pid if name == daemon.partition(".")[0] and not state.startswith("Z") else 0

    def environ(self) -> dict[str, str]:
        """This process's environment, and what Slurm's commands need to ask this cluster."""
        path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
        return {**os.environ, "SLURM_CONF": str(self.conf), "PATH": path}

    def command(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """One of Slurm's commands, to its end."""
        return subprocess.run(words, env=self.environ(), capture_output=True, text=True, timeout=timeout)

    def _configure(self) -> None:
        for name in ("etc", "run", "log", "state", "spool", "dev"):
            (self.dir / name).mkdir(parents=True, exist_ok=True)
        base = self._settings["base_port"] = _free_ports(NODES + 2)
        values = {
            "dir": self.dir,
            "host": socket.gethostname().partition(".")[0],
            "user": getpass.getuser(),
            "controller_port": base,
            "accounting_port": base + 1,
            "first_port": base + 2,
            "last_port": base + 1 + NODES,
            "nodes": NODES,
            "gpus": GPUS,
            "cpus": CPUS,
            "memory": MEMORY_MIB,
            **{name: self._settings[name] for name in ("min_job_age", "slurmd_timeout")},
        }
        for gpu in range(GPUS):
            (self.dir / f"dev/nvidia{gpu}").symlink_to("/dev/null")  # slurmd wants a character device
        etc = self.dir / "etc"
        text = SLURM_CONF + (ACCOUNTING_CONF if self.accounting else "")
        if self._settings["limits"]:
            text = text.replace("PriorityType=priority/basic\n", LIMITS_CONF)
        self.conf.write_text(text.format(**values))
        (etc / "gres.conf").write_text(f"NodeName=node[1-{NODES}] Name=gpu File={self.dir}/dev/nvidia[0-{GPUS - 1}]\n")
        (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")  # loaded, never used
        for name, content in (
            ("munge.key", os.urandom(1024)),
            ("slurmdbd.conf", SLURMDBD_CONF.format(**values).encode()),
        ):
            (etc / name).touch(mode=0o600)
            (etc / name).write_bytes(content)
        for node in self.nodes:
            (self.dir / "spool" / node).mkdir(exist_ok=True)
        self._settings_file.write_text(json.dumps(self._settings))

    def _start_database(self) -> None:
        if self.pid("mariadbd"):
            return
        data, user = self.dir / "database", getpass.getuser()
        private = [f"--datadir={data}", f"--user={user}", "--innodb-log-file-size=8M"]
        if not (data / "mysql").is_dir():
            own_socket = ["--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}"]
            for left in (2, 1, 0):  # it failed once in hundreds, on a machine busy with other clusters
                shutil.rmtree(data, ignore_errors=True)
                data.mkdir()
                try:
                    self._checked(["mariadb-install-db", "--no-defaults", "--skip-test-db", *own_socket, *private])
                    break
                except ClusterError:
                    if not left:
                        raise
        (self.dir / "run/mariadbd.pid").unlink(missing_ok=True)
        address = f"--socket={self.dir}/run/mariadb.socket"
        with (self.dir / "log/mariadbd.log").open("ab") as log:
            subprocess.Popen(
                [
                    *("mariadbd", "--no-defaults", *private, address, f"--pid-file={self.dir}/run/mariadbd.pid"),
                    *("--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"),
                    "--innodb-lock-wait-timeout=900",
                ],
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ask = ["mariadb", "--no-defaults", address, f"--user={user}", "-e", "create database if not exists slurm"]
        self._wait(lambda: self.command(*ask).returncode == 0, "mariadbd", "answer")

    def _idle_nodes(self) -> int:
        states = self.command("sinfo", "-h", "-N", "-p", "main", "-o", "%T").stdout.split()
        return sum(state in ("idle", "mixed", "allocated") for state in states)

    def _checked(self, words: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        try:
            # a file, not a pipe: daemons keep it open
            with (self.dir / "log/start.log").open("ab") as log:
                subprocess.run(
                    words,
                    env={**self.environ(), **(environ or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    timeout=START_SECONDS,
                    check=True,
                )
        except FileNotFoundError:
            raise ClusterError(f"{words[0]} is not installed: run tests/system-packages.sh slurm") from None
        except subprocess.SubprocessError as error:
            raise ClusterError(f"{error}\n{self._log('start')}") from None

    def _wait(self, ready: Callable[[], bool], daemon: str, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if time.monotonic() > deadline:
                raise ClusterError(f"{daemon} did not {what}\n{self._log('start')}\n{self._log(daemon)}")
            time.sleep(0.05)

    def _log(self, name: str) -> str:
        path = self.dir / f"log/{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-60:]) if path.exists() else ""

    def _leftovers(self) -> Iterator[int]:
        """Processes of jobs that outlived the daemons of their node."""
        own = f"SLURM_CONF={self.conf}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "environ").read_bytes().split(b"\0")
                in_job = own in words and any(word.startswith(b"SLURM_JOB_ID=") for word in words)
                if in_job or ((process / "comm").read_text() == "slurmstepd\n" and self._holds_log(process)):
                    yield int(process.name)

    def _holds_log(self, process: Path, log: str = "") -> bool:
        """slurmstepd wipes its environment, but keeps its node's log open."""
        links = [os.readlink(link) for link in (process / "fd").iterdir()]
        return any(link == log if log else link.startswith(f"{self.dir}/log/") for link in links)

    def _stepds(self, log: str) -> Iterator[int]:
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "comm").read_text() == "slurmstepd\n" and self._holds_log(process, log):
                    yield int(process.name)


def _parents() -> Iterator[tuple[int, int]]:
    """Process -> its parent."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):
            yield int(process.name), int(_field((process / "status").read_text(), "PPid"))


def _free_ports(number: int) -> int:
    """The first of so many free ports, below those that the system hands out by itself."""
    for _ in range(200):
        first = random.randrange(16000, 32000, 10)
        with suppress(OSError):
            for port in range(first, first + number):
                with socket.socket() as probe:
                    probe.bind(("", port))
            return first
    raise ClusterError("no free ports between 16000 and 32000")


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _end(pid: int, number: int) -> None:
    """Signal a process, and kill it if it does not end."""
    with suppress(OSError):  # also when it is gone from /proc
        os.kill(pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if _field(Path(f"/proc/{pid}/status").read_text(), "State").startswith("Z"):
                return
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)


def _field(status: str, key: str) -> str:
    return next(line.partition(":")[2].strip() for line in status.splitlines() if line.startswith(f"{key}:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down", "status", "env"))
    parser.add_argument("dir", type=Path)
    parser.add_argument("--no-accounting", action="store_true", help="neither slurmdbd nor a database: no sacct")
    options = parser.parse_args()
    cluster = Cluster(options.dir, accounting=not options.no_accounting)
    if options.action == "up":
        cluster.up()
    elif options.action == "down":
        cluster.down()
    elif options.action == "env":
        print(f"export SLURM_CONF={cluster.conf}")
    else:
        for daemon in cluster.daemons:
            pid = cluster.pid(daemon)
            print(f"{daemon} {f'up, pid {pid}' if pid else 'down'}")
        answer = cluster.command("sinfo", "-N", "-p", "main", "-o", "%N %T %c %m %G")
        print(answer.stdout, end="")
        return 0 if answer.returncode == 0 and all(map(cluster.pid, cluster.daemons)) else 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterError as error:
        sys.exit(f"error: {error}")
