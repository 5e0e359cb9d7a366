"""How long training stands for a checkpoint: `python -m tests.bench.saves`, a part of `make bench`.

SmolLM2-135M is trained whole, in fp32, by each engine; runs that save beside training and runs that wait take turns in
one process. The last checkpoint of a run is waited for in any case and not counted. Beside the stall there is what the
steps cost that ran while a checkpoint was written: on CPUs the writer takes its share of the cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tests.conftest  # noqa: F401 - it names the environments
from tests.bench.page import PAGE, machine, put, table
from tests.train.conftest import Run, write_run
from tests.train.sharded import finish

GOAL = 0.10
EVERY = 6
STEPS = 4 * EVERY - 1  # a checkpoint is written before the next one is due, as it is in real runs
ENGINES: dict[str, dict[str, Any]] = {
    "megatron": {},
    "fsdp": {"engine": "fsdp", "fsdp": {"offload": "none"}},
    "deepspeed": {"engine": "deepspeed", "deepspeed": {"stage": 2, "offload": "none"}},
}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write a section of")
    options = parser.parse_args(arguments)
    rows, shares, about = [], {}, ""
    for engine, settings in ENGINES.items():
        with tempfile.TemporaryDirectory(prefix="swiftlaunch-bench-") as folder:
            figures = measured(engine, settings, Path(folder), options.repeats)
        shares[engine] = figures.stall / figures.stand
        size = f"{figures.size / 1e9:.2f} GB"
        rows += [
            (engine, size, "training waits", f"{figures.stand:.2f} s", f"{figures.whole:.2f} s"),
            ("", "", "beside training", f"{figures.stall:.2f} s", f"{figures.beside:.2f} s"),
        ]
        about += f" {engine} {shares[engine]:.1%} (steps meanwhile {figures.busy:.2f} s, others {figures.quiet:.2f} s)."
    head = (
        f"Checkpoints of SmolLM2-135M in full training, one process with one thread on {machine()}; medians of "
        f"{figures.count} saves, the first of a run among them, which also makes room for the copy. How long a save "
        "beside training holds it up, of the time of one that it waits for:"
    )
    names = ("engine", "size", "saving", "training stands", "until it is published")
    text = textwrap.fill(head + about, 118) + "\n\n" + table(names, rows)
    print(text)
    put("Saving", text, options.page)
    if slow := [engine for engine, share in shares.items() if share > GOAL]:
        sys.exit(f"{', '.join(slow)}: training stands for more than {GOAL:.0%} of a save that waits")


class Figures(NamedTuple):
    """Medians in seconds: training stands if it waits, and if not; both until published; steps beside saves, others."""

    stand: float
    stall: float
    whole: float
    beside: float
    busy: float
    quiet: float
    size: int  # bytes
    count: int  # saves of each kind


def measured(engine: str, settings: dict[str, Any], folder: Path, repeats: int) -> Figures:
    runs = [
        (asynchronous, made(folder / f"{number}-{asynchronous}", settings, asynchronous=asynchronous))
        for number in range(repeats)
        for asynchronous in (False, True)
    ]
    finish([run for _, run in runs], engine)
    waits = [save for asynchronous, run in runs if not asynchronous for save in saves(run)]
    beside = [save for asynchronous, run in runs if asynchronous for save in saves(run)]
    busy, quiet = steps([run for asynchronous, run in runs if asynchronous])
    stand, stall = (statistics.median(save["stall_seconds"] for save in found) for found in (waits, beside))
    whole, published = (statistics.median(save["seconds"] for save in found) for found in (waits, beside))
    return Figures(stand, stall, whole, published, busy, quiet, waits[0]["bytes"], len(waits))


def made(folder: Path, engine: dict[str, Any], *, asynchronous: bool) -> Run:
    settings: dict[str, Any] = {
        **engine,
        "tuner": "full",
        "steps": STEPS,
        "global_batch_size": 2,
        "micro_batch_size": 1,
        "learning_rate": 1e-5,
        "checkpoint": {"every_steps": EVERY, "keep_last": 1, "asynchronous": asynchronous},
    }
    return write_run(folder, Path(os.environ["SWIFTLAUNCH_TEST_MODEL"]), 1, {}, settings)


def saves(run: Run) -> list[dict[str, Any]]:
    return [event for event in run.events("checkpoint") if event["step"] < STEPS]


def steps(runs: Sequence[Run]) -> tuple[float, float]:
    """Median seconds of steps that ended while a checkpoint was written, and of the others; a run's first left out."""
    busy, quiet = [], []
    for run in runs:
        written = [(save["time"] - save["seconds"], save["time"]) for save in run.events("checkpoint")]
        for step, event in run.steps().items():
            if step > 1:
                during = any(begun < event["time"] < ended for begun, ended in written)
                (busy if during else quiet).append(event["seconds"])
    return statistics.median(busy), statistics.median(quiet)


if __name__ == "__main__":
    main(sys.argv[1:])
