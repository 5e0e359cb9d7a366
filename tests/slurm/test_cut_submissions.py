"""A submission that is killed with SIGKILL, at any point, is completed by `submit --resume`: one job for each stage.

The commands are Slurm's own; a wrapper before them on PATH notes each call and kills the swiftlaunch that made it.
Points between calls are hit by an audit hook in the killed interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.plan import job_comment
from launcher.rundir import RunDir
from tests.chain.conftest import GOOD
from tests.chain.probe import PROBE, tell
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import ClusterUser

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

STAGES = {"train": "", "export": "train", "quantize": "export"}  # each with the one that it waits for
WRAPPER = """\
#!/bin/bash
name=${0##*/}
PATH=${PATH#*:} # without this folder
now=$( # several are asked at once
  exec 9>>"$CALLS"
  flock 9
  case " $* " in *" --test-only "*) echo "$name --test-only" ;; *) echo "$name" ;; esac >&9
  wc -l <"$CALLS"
)
if [ "${KILL_AT:-}" = "before $now" ]; then
  kill -9 "$PPID"
elif [ "${KILL_AT:-}" = "after $now" ]; then
  "$name" "$@" >/dev/null
  kill -9 "$PPID"
elif [ "${KILL_AT:-}" = "during $now" ]; then
  kill -STOP "$CONTROLLER"
  (sleep 1; kill -9 "$PPID") &
  exec "$name" "$@"
else
  exec "$name" "$@"
fi
"""
HOOK = """
import os, sys
seen = [0]
def hook(event, arguments):
    if event in ("os.mkdir", "os.rename", "shutil.copyfile", "sqlite3.connect") and any(
        os.environ["ROOT"] in os.fsdecode(word) for word in arguments if isinstance(word, (str, bytes, os.PathLike))
    ):
        seen[0] += 1
        with open(os.environ["CALLS"], "a") as calls:
            calls.write(event + "\\n")
        if seen[0] == int(os.environ.get("KILL_AT") or 0):
            os.kill(os.getpid(), 9)
sys.addaudithook(hook)
"""


class CutUser(ClusterUser):
    """A user whose commands can be killed at their calls of Slurm's commands."""

    def __init__(self, root: Path, cluster: Cluster) -> None:
        super().__init__(root, cluster)
        recipe = GOOD.replace("[evaluate]\nlimit = 2\n", "").replace('[serve]\nprompt = "hello"\n', "")
        self.write(recipe.replace('evaluation = ["eval rows.jsonl"]\n', ""))
        self.calls = root / "calls"
        programs = root / "bin"
        programs.mkdir()
        for name in ("sbatch", "squeue", "sacct", "scancel", "scontrol"):
            (programs / name).write_text(WRAPPER)
            (programs / name).chmod(0o755)
        self.environ |= {"CALLS": str(self.calls), "PATH": f"{programs}:{self.environ['PATH']}", "ROOT": str(root)}

    def hook_in(self) -> None:
        """From now on KILL_AT counts what the interpreter does to files, not calls of Slurm's commands."""
        hooks = self.root / "hooks"
        hooks.mkdir()
        (hooks / "sitecustomize.py").write_text(HOOK)
        self.environ["PYTHONPATH"] += f":{hooks}"
        self.environ["PATH"] = self.environ["PATH"].partition(":")[2]

    def cut(self, at: str, *words: str) -> int:
        """Run a command that is killed at a call, "before 3"; the number of calls that were made."""
        self.calls.unlink(missing_ok=True)
        self.environ["KILL_AT"] = at
        finished = self.swiftlaunch(*words)
        self.environ["KILL_AT"] = ""
        assert finished.returncode == (-signal.SIGKILL if at else 0), f"{at}: {finished.stderr}"
        return len(self.calls.read_text().splitlines())

    def submissions(self) -> list[int]:
        """Which calls of the last command submitted a job."""
        return [number for number, name in enumerate(self.calls.read_text().splitlines(), 1) if name == "sbatch"]

    def run_id(self) -> str:
        """The newest run, "" where there is none."""
        runs = json.loads(self.run("runs", "--json"))
        return str(runs[0]["run_id"]) if runs else ""

    def assert_one_set(self, run_id: str) -> RunDir:
        """Each stage has one job that lives, and it waits for the one before; the launcher knows the same ids."""
        answer = self.cluster.command("squeue", "-h", "--states=all", "-o", "%k|%i|%E|%T")
        found: dict[str, list[list[str]]] = {}
        for line in answer.stdout.splitlines():
            comment, *rest = line.split("|")
            found.setdefault(comment, []).append(rest)
        jobs = {stage: found.get(job_comment(run_id, stage), []) for stage in STAGES}
        assert {stage: len(rows) for stage, rows in jobs.items()} == dict.fromkeys(STAGES, 1), jobs
        for stage, before in STAGES.items():
            ((job_id, dependency, state),) = jobs[stage]
            assert state == "PENDING"
            assert not before or dependency.startswith(f"afterok:{jobs[before][0][0]}("), dependency
            assert self.jobs(RunDir(self.root / "runs" / run_id))[stage] == [job_id]
        return RunDir(self.root / "runs" / run_id)

    def assert_nothing(self, run_id: str) -> None:
        comments = self.cluster.command("squeue", "-h", "--states=all", "-o", "%k").stdout
        assert not run_id or f":{run_id}:" not in comments
        assert not list((self.root / "runs").glob("[!.]*"))
        assert self.run_id() == ""

    def forget(self) -> None:
        """Delete all runs and their index."""
        for path in (self.root / "runs").glob("*"):
            shutil.rmtree(path)
        (self.home / ".local/state/swiftlaunch/registry.sqlite").unlink(missing_ok=True)

    def cancel(self, run_id: str) -> None:
        self.run("cancel", run_id)

    def run_through(self, files: RunDir) -> None:
        """Release the jobs, with the probe as every worker, and wait for their end."""
        for stage in self.plan(files).stages:
            (files.code / f"launcher/work/{stage.worker}.py").write_text(PROBE)
            tell(files, stage.name, ["done"])
        self.release(files)
        self.until(files, lambda states: states["run"] == "COMPLETED")


@pytest.fixture
def user(tmp_path: Path, cluster: Cluster) -> Iterator[CutUser]:
    user = CutUser(tmp_path, cluster)
    yield user
    held = cluster.command("squeue", "-h", "-o", "%i %k").stdout.splitlines()
    ids = [line.partition(" ")[0] for line in held if f":{GOOD.split(chr(34))[1]}-" in line]
    cluster.command("scancel", *ids, "999999")


def test_killed_at_every_call(user: CutUser) -> None:
    submit = ("submit", "recipe.toml", "--site", "./real.toml")
    number = user.cut("", *submit)
    user.assert_one_set(user.run_id())
    user.cancel(user.run_id())
    assert number >= len(STAGES)
    for call in range(1, number + 1):
        for moment in ("before", "after"):
            user.forget()
            user.cut(f"{moment} {call}", *submit)
            run_id = user.run_id()
            if not run_id:  # it only asked whether the jobs would be taken
                user.assert_nothing("")
                continue
            user.run("submit", "--resume", run_id)
            files = user.assert_one_set(run_id)
            assert user.run("submit", "--resume", run_id) == ""
            if call == number - 1:
                user.run_through(files)
            else:
                user.cancel(run_id)


def test_resume_is_killed_too(user: CutUser) -> None:
    user.cut("", "submit", "recipe.toml", "--site", "./real.toml")
    first = user.submissions()[0]
    user.cancel(user.run_id())

    def start() -> str:
        user.cut(f"after {first}", "submit", "recipe.toml", "--site", "./real.toml")
        return user.run_id()

    number = user.cut("", "submit", "--resume", start())
    user.cancel(user.run_id())
    assert number >= len(STAGES)
    for call in range(1, number + 1):
        run_id = start()
        user.cut(f"after {call}", "submit", "--resume", run_id)
        user.run("submit", "--resume", run_id)
        user.assert_one_set(run_id)
        user.cancel(run_id)


def test_resubmission_of_a_failed_stage_is_killed(user: CutUser) -> None:
    """Its old job, which failed, has the same comment as the new one."""
    run_id = user.run("submit", "recipe.toml", "--site", "./real.toml").strip()
    user.cancel(run_id)
    old = user.jobs(RunDir(user.root / "runs" / run_id))
    calls = user.cut("", "submit", "--resume", run_id)
    sbatch_calls = user.submissions()
    user.cancel(run_id)
    assert calls >= len(sbatch_calls) == len(STAGES)
    user.cut(f"after {sbatch_calls[0]}", "submit", "--resume", run_id)
    user.run("submit", "--resume", run_id)
    noted = user.jobs(RunDir(user.root / "runs" / run_id))
    assert {stage: len(ids) for stage, ids in noted.items()} == dict.fromkeys(STAGES, 3)
    assert all(noted[stage][0] == old[stage][0] for stage in STAGES)
    queued = user.cluster.command("squeue", "-h", "-o", "%i %k").stdout.splitlines()
    assert sorted(line.split()[0] for line in queued if run_id in line) == sorted(ids[-1] for ids in noted.values())


def test_killed_while_it_writes(user: CutUser) -> None:
    """Either nothing is there, or a run that is completed, or one that says that it is none and goes away."""
    user.hook_in()
    submit = ("submit", "recipe.toml", "--site", "./real.toml")
    for _ in range(2):  # the first one also makes folders that stay
        user.forget()
        user.cut("", *submit)
        events = list(enumerate(user.calls.read_text().splitlines(), 1))
        user.cancel(user.run_id())
    telling = [k for k, event in events if event in ("os.rename", "sqlite3.connect")]
    others = [k for k, event in events if k not in telling]
    outcomes = set()
    for k in sorted({*telling, *others[:6], *others[6::12]}):
        user.forget()
        user.cut(str(k), *submit)
        run_id = user.run_id()
        if not run_id:
            outcomes.add("nothing")
            user.assert_nothing("")
            continue
        resumed = user.swiftlaunch("submit", "--resume", run_id)
        if resumed.returncode == 2:
            outcomes.add("taken away")
            assert "nothing of it is left" in resumed.stderr
            user.assert_nothing(run_id)
            assert not list((user.root / "runs").iterdir())
        else:
            outcomes.add("completed")
            assert resumed.returncode == 0, resumed.stderr
            user.assert_one_set(run_id)
            user.cancel(run_id)
    assert outcomes == {"nothing", "taken away", "completed"}


def test_killed_while_the_controller_hangs(user: CutUser) -> None:
    """The killed swiftlaunch leaves an sbatch that is still being answered; two shells try to complete the run."""
    controller = user.cluster.pid("slurmctld")
    user.environ["CONTROLLER"] = str(controller)
    user.cut("", "submit", "recipe.toml", "--site", "./real.toml")
    first = user.submissions()[0]
    user.cancel(user.run_id())
    user.forget()
    try:
        user.cut(f"during {first}", "submit", "recipe.toml", "--site", "./real.toml")
        resumes = [user.start(["submit", "--resume", "latest"]) for _ in range(2)]
        time.sleep(3)
        assert [process.poll() for process in resumes] == [None, None]  # they wait for that sbatch
    finally:
        os.kill(controller, signal.SIGCONT)
    for process in resumes:
        process.communicate(timeout=120)
    user.run("submit", "--resume", "latest")
    user.run_through(user.assert_one_set(user.run_id()))


def test_jobs_that_a_killed_controller_lost(tmp_path: Path) -> None:
    """It writes its state down seconds later; accounting has the jobs that it forgot waiting for ever."""
    folder = Path(tempfile.mkdtemp(prefix="swiftlaunch-slurm-", dir="/tmp"))
    user = CutUser(tmp_path, Cluster(folder))
    try:
        user.cluster.up()
        run_id = user.run("submit", "recipe.toml", "--site", "./real.toml").strip()
        user.cluster.stop("slurmctld", signal.SIGKILL)
        user.cluster.start("slurmctld")
        user.run("submit", "--resume", run_id)
        files = RunDir(user.root / "runs" / run_id)
        queued = user.cluster.command("squeue", "-h", "-o", "%i %k").stdout.splitlines()
        newest = {stage: ids[-1] for stage, ids in user.jobs(files).items()}
        assert sorted(queued) == sorted(f"{job_id} {job_comment(run_id, stage)}" for stage, job_id in newest.items())
        user.run_through(files)
    finally:
        user.cluster.down()
        shutil.rmtree(folder)
