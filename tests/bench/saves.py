"""How long training stands for a checkpoint: `python -m tests.bench.saves`, a part of `make bench`.

SmolLM2-135M is trained whole, in fp32; runs that save beside training and runs that wait take turns in one process. The
last checkpoint of a run is waited for in any case and not counted. Beside the stall there is what the steps cost that
ran while a checkpoint was written: on CPUs the writer takes its share of the cores.
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
from typing import Any

import tests.conftest  # noqa: F401 - it names the environments
from tests.bench.page import PAGE, machine, put, table
from tests.train.conftest import Run, finish_together, write_run

GOAL = 0.10
EVERY = 4
STEPS = 4 * EVERY - 1  # a checkpoint is written before the next one is due, as it is in real runs


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write a section of")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="swiftlaunch-bench-") as folder:
        runs = [
            (asynchronous, made(Path(folder) / f"{number}-{asynchronous}", asynchronous=asynchronous))
            for number in range(options.repeats)
            for asynchronous in (False, True)
        ]
        finish_together([run for _, run in runs], seconds=7200)
        waits = [save for asynchronous, run in runs if not asynchronous for save in saves(run)]
        beside = [save for asynchronous, run in runs if asynchronous for save in saves(run)]
        busy, quiet = steps([run for asynchronous, run in runs if asynchronous])
    stall, stand = (statistics.median(save["stall_seconds"] for save in found) for found in (beside, waits))
    whole = {found is beside: statistics.median(save["seconds"] for save in found) for found in (waits, beside)}
    about = (
        f"A checkpoint of SmolLM2-135M in full training, {waits[0]['bytes'] / 1e9:.2f} GB, one process with one thread "
        f"on {machine()}; median of {len(waits)} saves each, the first of a run among them, which also makes room for "
        f"the copy. A save beside training holds it up for {stall / stand:.1%} of one that it waits for. Steps while a "
        f"checkpoint was written took {busy:.2f} s, others {quiet:.2f} s."
    )
    rows = [
        ("training waits", f"{stand:.2f} s", f"{whole[False]:.2f} s"),
        ("beside training", f"{stall:.2f} s", f"{whole[True]:.2f} s"),
    ]
    text = textwrap.fill(about, 118) + "\n\n" + table(("saving", "training stands", "until it is published"), rows)
    print(text)
    put("Saving", text, options.page)
    if stall / stand > GOAL:
        sys.exit(f"training stands for more than {GOAL:.0%} of a save that waits")


def made(folder: Path, *, asynchronous: bool) -> Run:
    settings: dict[str, Any] = {
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
