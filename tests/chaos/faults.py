"""The faults: what an operator, a neighbour, a broken machine or a full disk does to a job that trains."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.chaos.trial import ChaosError, Trial, fill

LITTLE_SPACE = 256 * 1024  # bytes: for logs and events, not for a checkpoint


class Fault(NamedTuple):
    """`strike` returns how to put things right once the run is under way again, or None.

    `ends`: the attempt ends, and another has to go on from a checkpoint.
    """

    name: str
    strike: Callable[[Trial], Callable[[], object] | None]
    ends: bool = True
    partition: str = ""  # where it can strike; "" for everywhere


def requeue(trial: Trial) -> None:
    trial.command("scontrol", "requeue", trial.job_id)


def preempt(trial: Trial) -> None:
    """A job of a higher partition wants all nodes for a moment."""
    urgent = ("--partition=main", "--nodes=4", "--exclusive", "--mem=0", "--output=/dev/null", "--wrap=sleep 1")
    trial.command("sbatch", "--job-name=urgent", *urgent)


def node_down(trial: Trial) -> Callable[[], object]:
    """The administrator (or a health check) takes a node away."""
    node = trial.chance.choice(trial.nodes())
    trial.command("scontrol", "update", f"nodename={node}", "state=down", "reason=chaos")
    # refused where the node has come back by itself
    return lambda: trial.cluster.command("scontrol", "update", f"nodename={node}", "state=resume")


def node_dies(trial: Trial) -> Callable[[], object]:
    """Power cut: the controller has to notice by itself."""
    node = trial.chance.choice(trial.nodes())
    trial.cluster.kill_node(node)
    return lambda: trial.cluster.start(f"slurmd.{node}")


def kill_rank(trial: Trial) -> None:
    os.kill(trial.chance.choice(list(trial.ranks().values())), signal.SIGKILL)


def kill_rank_in_save(trial: Trial) -> None:
    """While a checkpoint is written, at any moment of it."""
    folder = trial.files.checkpoints("train")
    trial.until(lambda: list(folder.glob(".*.part")), "a checkpoint that is written")
    time.sleep(trial.chance.uniform(0, 0.15))
    kill_rank(trial)


def kill_slurmd(trial: Trial) -> None:
    """On a node of the job; it is started again seconds later. The job's own processes are not its children."""
    daemon = f"slurmd.{trial.chance.choice(trial.nodes())}"
    trial.cluster.stop(daemon, signal.SIGKILL)
    time.sleep(trial.chance.uniform(0.5, 3))
    trial.cluster.start(daemon)


def kill_controller(trial: Trial) -> None:
    trial.cluster.stop("slurmctld", signal.SIGKILL)
    time.sleep(trial.chance.uniform(0.5, 4))
    trial.cluster.start("slurmctld")


def sudden_time_limit(trial: Trial) -> None:
    """The limit comes without the warning before it."""
    _end_at(trial, "now+1")


def time_limit(trial: Trial) -> None:
    """The limit comes near: the warning is due at once."""
    _end_at(trial, "now+100")


def _end_at(trial: Trial, when: str) -> None:
    trial.command("scontrol", "update", f"jobid={trial.job_id}", f"EndTime={when}")
    trial.until(lambda: trial.queue("%T") == "PENDING", "the job to be in the queue again")
    trial.command("scontrol", "update", f"jobid={trial.job_id}", "TimeLimit=60")  # it was changed with the end


def truncate_checkpoint(trial: Trial) -> Callable[[], object]:
    """The newest checkpoint loses its second half, and the job its life."""
    trial.until(lambda: len(trial.checkpoints()) >= 2, "two checkpoints")
    attempt = trial.attempt()
    os.kill(trial.ranks()[0], signal.SIGKILL)
    trial.until_dead()
    damaged = max(trial.checkpoints()[-1].glob("*.distcp"), key=lambda path: path.stat().st_size)
    os.truncate(damaged, damaged.stat().st_size // 2)

    def warned() -> None:
        if f"{damaged.parent} is left out: {damaged.name} is damaged" not in trial.log(attempt + 1):
            raise ChaosError(f"no warning of {damaged} in {trial.files.attempt('train', attempt + 1)}")

    return warned


def full_disk(trial: Trial) -> Callable[[], object]:
    """No space for the next checkpoint; somebody makes room once the job has failed."""
    assert trial.disk is not None
    attempt = trial.attempt()
    ballast = fill(trial.disk, leave_bytes=LITTLE_SPACE)
    try:
        trial.until_dead()
    finally:
        ballast.unlink()

    def told() -> None:
        reports = list(trial.files.attempt("train", attempt).glob("failure-*.json"))
        if not any("No space left" in path.read_text() for path in reports):
            raise ChaosError(f"no report of a full disk in {trial.files.attempt('train', attempt)}")

    return told


FAULTS = (
    Fault("requeue by an operator", requeue),
    Fault("preemption", preempt, partition="spare"),
    Fault("preemption with grace time", preempt, partition="patient"),
    Fault("node set down", node_down),
    Fault("node dies", node_dies),
    Fault("kill -9 of a rank", kill_rank),
    Fault("kill -9 of a rank in a save", kill_rank_in_save),
    Fault("kill -9 of slurmd", kill_slurmd, ends=False),
    Fault("kill -9 of slurmctld", kill_controller, ends=False),
    Fault("time limit, warned", time_limit),
    Fault("time limit, not warned", sudden_time_limit),
    Fault("newest checkpoint truncated", truncate_checkpoint),
    Fault("full disk in a save", full_disk),
)


def hit(trial: Trial, fault: Fault, after_steps: int) -> tuple[int, int, float]:
    """Strike when the newest attempt has done so many steps, and wait until training has gone beyond where it was.

    Returns the step at which it was hit, the steps that were lost, and the seconds from the fault to the next new step.
    """
    attempt = trial.attempt()
    trial.until_trained(after_steps, attempt)
    struck = time.time()
    mend = fault.strike(trial)
    try:
        if fault.ends:
            reached, lost, again = _begun_again(trial, attempt)
        else:
            reached, lost, again = _gone_on(trial, attempt, struck)
    finally:
        if mend:
            mend()
    return reached, lost, again - struck


def _begun_again(trial: Trial, attempt: int) -> tuple[int, int, float]:
    """The step that an attempt reached, how many of its steps the next one does again, and when it has caught up."""
    trial.until(lambda: trial.attempt() > attempt, "another attempt")
    reached = max(trial.steps(attempt))
    trial.until(lambda: any(step > reached for step in trial.steps(attempt + 1)), f"a step after {reached}")
    if trial.attempt() != attempt + 1:
        raise ChaosError(f"one fault, but {trial.attempt() - attempt} attempts ended\n{trial.standing()}")
    resumed = [int(event["step"]) for event in trial.events("resumed") if event["attempt"] == attempt + 1]
    new = next(e for e in trial.events("step") if e["attempt"] == attempt + 1 and e["step"] > reached)
    return reached, reached - (resumed[0] if resumed else 0), float(new["time"])


def _gone_on(trial: Trial, attempt: int, struck: float) -> tuple[int, int, float]:
    """As `_begun_again`, of a fault that ends no attempt. `struck` is in Unix seconds."""
    now = time.time()
    trial.until(lambda: trial.events("step")[-1]["time"] > now, "another step")
    if trial.attempt() != attempt:
        raise ChaosError(f"attempt {attempt} was ended\n{trial.standing()}")
    new = next(event for event in trial.events("step") if event["time"] > struck)
    return int(new["step"]) - 1, 0, float(new["time"])
