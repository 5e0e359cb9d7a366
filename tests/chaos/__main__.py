"""Training on a real cluster while things break: `make chaos`, or `python -m tests.chaos --seed 7 --faults 30`.

Several runs of the Megatron trainer (a tiny model, two ranks on two nodes) are hit by faults drawn from a seed. Each
has to end COMPLETED with the weights of a run that nothing hit, no job submitted twice, no job or process left over.
Prints a table: fault, steps lost, seconds from the fault to the next new step. Exit code 1 if a claim does not hold.

Needs the train environment (`make engines`) and Slurm's packages. The full disk is a small one; only root may mount it.
"""

from __future__ import annotations

import argparse
import getpass
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tests.conftest  # noqa: F401  names the engines
from tests.chaos.faults import FAULTS, Fault, full_disk, hit
from tests.chaos.trial import PATIENCE_SECONDS, ChaosError, MissedError, Trial
from tests.slurm.cluster import Cluster
from tests.slurm.engines import ROOT, EngineUser

CHECKPOINTS = 15  # of a run
FAULTS_PER_RUN = 5
MOST_STEPS_BETWEEN = 7
TRAINING_SECONDS = 100  # of a run that nothing hits
ARRIVAL = 0.4  # of that time a fault may take to arrive: the controller looks at time limits twice a minute
LEAST_STEPS = 60
MOST_RUNS = 3  # times as many as planned: where training was done before a fault arrived, another run is hit
DISK_MIB = 256
SLURMD_TIMEOUT = 10  # seconds until the controller takes a silent node for dead
LAYOUTS = {"DP2": "train.layout.pipeline=1", "PP2": "train.layout.pipeline=2"}
RECIPE = """\
name = "chaos"
[model]
path = "{model}"
[data]
source = "reasoning-gym"
task = "chain_sum"
task_options = {{ min_terms = 2, max_terms = 2, min_digits = 1, max_digits = 2 }}
train_size = 96
train_seed = 7
evaluation_size = 8
evaluation_seed = 900001
[train]
method = "sft"
tuner = "lora"
precision = "fp32"
steps = {steps}
global_batch_size = 32
micro_batch_size = 2
sequence_length = 128
learning_rate = 5e-3
schedule = "cosine"
warmup_steps = 2
[train.lora]
rank = 8
alpha = 16
dropout = 0.1 # random states matter
[train.checkpoint]
every_steps = {every}
keep_last = 2
[resume]
backoff_seconds = 0
[resources.train]
nodes = 2
tasks_per_node = 1
cpus_per_task = 1
memory = "3G"
max_attempts = 20
[resources.export]
memory = "3G"
"""


class Chaos:
    """A cluster with a user, the folder of their runs, and a number of claims that did not hold."""

    def __init__(self, folder: Path, disk: Path | None, chance: random.Random) -> None:
        self.cluster = Cluster(folder / "cluster", slurmd_timeout=SLURMD_TIMEOUT)
        self.disk = disk
        self.chance = chance
        self.steps = LEAST_STEPS
        self.last_steps = 0  # a run that has no more than these left is hit no more
        self.users = {
            partition: EngineUser(_made(folder / partition), self.cluster, partition=partition)
            for partition in ("spare", "patient")
        }
        self.recipe = folder / "chaos.toml"
        self.references: dict[str, bytes] = {}
        self.broken: list[str] = []
        self.model = folder / "model"
        python = self.users["spare"].train_python
        words = [python, str(ROOT / "tests/train/make_model.py"), str(self.model), "llama"]
        subprocess.run(words, check=True, timeout=300, capture_output=True)

    def start(self, partition: str, layout: str) -> Trial:
        user = self.users[partition]
        every = max(2, self.steps // CHECKPOINTS)
        self.recipe.write_text(RECIPE.format(model=self.model, steps=self.steps, every=every))
        if self.disk:
            user.move_runs(self.disk / "runs")
        files = user.submit(self.recipe, LAYOUTS[layout])
        trial = Trial(files, self.cluster, self.chance, self.disk)
        trial.until(trial.attempt, "the first attempt")
        return trial

    def calibrate(self, training_seconds: int) -> None:
        """Choose the number of steps: a run has to last longer than the slowest fault takes to arrive."""
        self.steps = LEAST_STEPS // 4
        trial = self.start("spare", "DP2")
        self.finish("spare", trial)
        seconds = statistics.median(float(event["seconds"]) for event in trial.events("step"))
        self.steps = max(LEAST_STEPS, round(training_seconds / seconds))
        self.last_steps = min(self.steps // 2, round(training_seconds * ARRIVAL / seconds))
        print(f"a step takes {seconds:.2f} s: {self.steps} steps", flush=True)

    def reference(self, layout: str) -> bytes:
        """The weights of a run that nothing hits."""
        if layout not in self.references:
            trial = self.start("spare", layout)
            self.finish("spare", trial)
            if trial.steps() != list(range(1, self.steps + 1)):
                raise ChaosError(f"the undisturbed run was disturbed: {trial.files.root}")
            self.references[layout] = trial.weights()
        return self.references[layout]

    def finish(self, partition: str, trial: Trial) -> None:
        status = self.users[partition].until_ended(trial.files, PATIENCE_SECONDS)
        if status["state"] != "COMPLETED":
            raise ChaosError(f"{trial.files.root.name} ended {status['state']}\n{trial.standing()}")

    def run(self, number: int, partition: str, layout: str, faults: Sequence[Fault]) -> list[Fault]:
        """One disturbed run, from submission to its claims. Returns the faults that it was too short for."""
        expected = self.reference(layout)
        trial = self.start(partition, layout)
        waiting = list(faults)
        while waiting and max(trial.steps(), default=0) + MOST_STEPS_BETWEEN + self.last_steps < self.steps:
            fault = waiting[0]
            try:
                step, lost, seconds = hit(trial, fault, self.chance.randint(2, MOST_STEPS_BETWEEN))
            except MissedError:
                break
            waiting.remove(fault)
            _row(str(number), layout, fault.name, f"{step}", f"{lost}", f"{seconds:.1f}")
        self.finish(partition, trial)
        difference = _difference(trial.weights(), expected)
        self.claim(difference <= 1e-6, f"run {number}: weights differ by {difference}")
        weights = "bit-equal" if difference == 0 else f"within {difference:.1e}"
        for stage, ids in trial.jobs():
            self.claim(len(ids) == 1, f"run {number}: {stage} was submitted {len(ids)} times: {sorted(ids)}")
        warning = self.left_over()
        self.claim(not warning, f"run {number}: {warning}")
        _row(str(number), layout, f"COMPLETED after {trial.attempt()} attempts, weights {weights}", "", "", "")
        return waiting

    def claim(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.broken.append(otherwise)
            print(f"BROKEN: {otherwise}", flush=True)

    def left_over(self) -> str:
        """What is still in the queue or still runs half a minute after the end; "" for nothing."""
        deadline = time.monotonic() + 30
        while True:
            queue = self.cluster.command("squeue", "-h").stdout.strip()
            processes = self.cluster.leftovers()
            if not queue and not processes:
                return ""
            if time.monotonic() > deadline:
                return f"left over: {queue or processes}"
            time.sleep(0.5)


def draw(chance: random.Random, number: int, kinds: Sequence[Fault]) -> list[tuple[str, str, list[Fault]]]:
    """Runs with their partition, layout and faults: every kind of fault about as often, in any order."""
    wanted = [fault for _ in range(-(-number // len(kinds))) for fault in chance.sample(kinds, len(kinds))][:number]
    count = -(-number // FAULTS_PER_RUN)
    runs: list[tuple[str, str, list[Fault]]] = [
        (("spare", "patient")[index % 2], chance.choice(list(LAYOUTS)), []) for index in range(max(count, 2))
    ]
    for fault in sorted(wanted, key=lambda fault: not fault.partition):  # those that are bound first
        fitting = [faults for partition, _, faults in runs if fault.partition in ("", partition)]
        min(fitting, key=len).append(fault)
    for _, _, faults in runs:
        chance.shuffle(faults)
    return [run for run in runs if run[2]]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--only", default="", help="faults whose name this regular expression finds")
    parser.add_argument("--seconds", type=int, default=TRAINING_SECONDS, help="about how long a run trains")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # take the cluster down, too
    chance = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="swiftlaunch-chaos-", dir="/tmp"))
    with small_disk(folder / "disk") as disk:
        kinds = [
            fault for fault in FAULTS if re.search(options.only, fault.name) and (disk or fault.strike is not full_disk)
        ]
        if not disk:
            print("no full disk: only root may mount a small one", flush=True)
        print(f"seed {options.seed}, {options.faults} faults; to repeat: make chaos SEED={options.seed}", flush=True)
        chaos = Chaos(folder, disk, chance)
        try:
            chaos.cluster.up()
            chaos.calibrate(options.seconds)
            _row("run", "layout", "fault", "at step", "steps lost", "seconds to the next new step")
            runs = draw(chance, options.faults, kinds)
            most = MOST_RUNS * len(runs)
            for number, (partition, layout, faults) in enumerate(runs, 1):
                if waiting := chaos.run(number, partition, layout, faults):
                    chaos.claim(len(runs) < most, f"training was done before: {', '.join(f.name for f in waiting)}")
                    runs += [(partition, layout, waiting)] if len(runs) < most else []
        except (ChaosError, OSError) as error:
            chaos.claim(False, str(error))
        finally:
            if chaos.broken:
                _keep(chaos, folder)
            chaos.cluster.down()
    if not chaos.broken:
        shutil.rmtree(folder)
    print(f"{len(chaos.broken)} claims did not hold" if chaos.broken else "all claims hold")
    return 1 if chaos.broken else 0


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A disk in memory that can be filled up; None for those who may not mount one."""
    folder.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "swiftlaunch-chaos", str(folder)]
    if getpass.getuser() != "root" or subprocess.run(words, capture_output=True).returncode != 0:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _keep(chaos: Chaos, folder: Path) -> None:
    """Copy the runs before their disk goes."""
    if chaos.disk:
        shutil.copytree(chaos.disk, folder / "kept", symlinks=True, ignore_dangling_symlinks=True)
    print(f"logs are kept in {folder}", flush=True)


def _difference(found: bytes, expected: bytes) -> float:
    """The largest difference between two files of 32-bit weights; infinity where they are not alike at all."""
    if found == expected:
        return 0.0
    header = 8 + int.from_bytes(expected[:8], "little")
    if len(found) != len(expected) or found[:header] != expected[:header]:
        return float("inf")
    numbers = [memoryview(data[header:]).cast("f") for data in (found, expected)]
    return max(abs(mine - theirs) for mine, theirs in zip(*numbers, strict=True))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _row(*cells: str) -> None:
    widths = (4, 6, 58 if not cells[3] else 30, 7, 10, 0)
    print("  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
