"""One training run on the cluster while faults hit it: what it did, and how to wait for what it does next."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.plan import job_comment
from launcher.record import Event, read_events, read_json
from launcher.rundir import RunDir
from tests.slurm.cluster import Cluster

PATIENCE_SECONDS = 300.0  # a requeued job on a busy machine takes half a minute


class ChaosError(Exception):
    """A claim that did not hold, or something that did not come."""


class MissedError(Exception):
    """Training was done before a fault arrived."""


@dataclass
class Trial:
    """A run, its cluster, the chance that decides, and the disk that its folder is on (None: not a small one)."""

    files: RunDir
    cluster: Cluster
    chance: random.Random
    disk: Path | None

    @property
    def job_id(self) -> str:
        return str(read_json(self.files.jobs)["train"][-1])

    def command(self, *words: str) -> str:
        """One of Slurm's commands, which has to succeed."""
        answer = self.cluster.command(*words)
        if answer.returncode != 0:
            raise ChaosError(f"{' '.join(words)}: {answer.stderr.strip()}")
        return answer.stdout.strip()

    def events(self, kind: str = "") -> list[Event]:
        return [e for e in read_events(self.files.events, stage="train") if not kind or e["kind"] == kind]

    def attempt(self) -> int:
        """The newest attempt that has begun, 0 before the first."""
        return max((int(event["attempt"]) for event in self.events("attempt_started")), default=0)

    def steps(self, attempt: int = 0) -> list[int]:
        """Finished steps in the order in which they were done, of one attempt or of all."""
        return [int(event["step"]) for event in self.events("step") if attempt in (0, event["attempt"])]

    def checkpoints(self) -> list[Path]:
        """Published ones, oldest first."""
        return sorted(self.files.checkpoints("train").glob("step-*"))

    def ranks(self) -> dict[int, int]:
        """Rank -> process, of the newest attempt."""
        attempt = self.attempt()
        begun = [event for event in self.events("attempt_started") if event["attempt"] == attempt]
        return {int(event["rank"]): int(event["pid"]) for event in begun}

    def nodes(self) -> list[str]:
        """Where the job runs now."""
        return self.command("scontrol", "show", "hostnames", self.queue("%N")).split()

    def queue(self, what: str) -> str:
        """One field of squeue about the job."""
        return self.command("squeue", "-h", "--states=all", "-j", self.job_id, "-o", what)

    def log(self, attempt: int) -> str:
        """What the ranks of an attempt printed."""
        return "\n".join(
            path.read_text(errors="replace") for path in self.files.attempt("train", attempt).glob("*.log")
        )

    def until(self, ready: Callable[[], Any], what: str) -> None:
        """Wait for something. Raises ChaosError that shows where the run stands, MissedError when training is done."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not ready():
            if self.files.result("train").exists() and not ready():
                raise MissedError(what)
            if time.monotonic() > deadline:
                raise ChaosError(f"waited {PATIENCE_SECONDS:.0f} s for {what}\n{self.standing()}")
            time.sleep(0.1)

    def standing(self) -> str:
        with suppress(FileNotFoundError):
            batch = self.files.batch_log("train").read_text(errors="replace")[-1500:]
            queue = self.cluster.command("squeue", "-o", "%i %j %T %r %N").stdout
            return f"{queue}\n{batch}\n{self.log(self.attempt())[-3000:]}\n{self.files.root}"
        return str(self.files.root)

    def until_trained(self, steps: int, attempt: int) -> None:
        """Wait until an attempt has done so many steps of its own."""
        self.until(lambda: len(self.steps(attempt)) >= steps, f"{steps} steps of attempt {attempt}")

    def until_dead(self) -> None:
        """Wait until no rank of the newest attempt is left."""
        ranks = self.ranks().values()
        self.until(lambda: not any(map(alive, ranks)), "the end of all ranks")

    def weights(self) -> bytes:
        """What was trained."""
        (found,) = self.files.artifact("train").glob("*.safetensors")
        return found.read_bytes()

    def jobs(self) -> Iterator[tuple[str, set[str]]]:
        """Each stage with the ids of all jobs that Slurm ever had for it."""
        queue = self.command("squeue", "-h", "--states=all", "-o", "%i|%k").splitlines()
        accounts = self.command("sacct", "-P", "-n", "-D", "-X", "-S", "now-1day", "-o", "JobID,Comment").splitlines()
        plan = json.loads(self.files.plan.read_text())
        for stage in plan["stages"]:
            comment = job_comment(plan["run_id"], stage["name"])
            rows = [line.partition("|") for line in [*queue, *accounts]]
            yield stage["name"], {job_id for job_id, _, said in rows if said == comment}


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with suppress(OSError):
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    return False


def fill(disk: Path, *, leave_bytes: int) -> Path:
    """Take all space of a disk but a little; returns the file to delete."""
    ballast = disk / "ballast"
    size = 0
    with ballast.open("wb") as file:
        while (left := _free_bytes(disk) - leave_bytes) > 0:  # others write, too
            more = max(left // 2, min(left, leave_bytes))
            os.posix_fallocate(file.fileno(), size, more)
            size += more
    return ballast


def _free_bytes(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize
