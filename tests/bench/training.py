"""Tokens a second of our training loop beside a bare one and beside TRL's: `python -m tests.bench.training`.

A part of `make bench`; writes its section of docs/benchmarks.md. Each trainer is a process that runs a few steps when
it is its turn and waits otherwise, so that all have the machine for themselves, and meet its load alike. A round is a
turn of each; ratios are of the turns of one round, and the median of the rounds counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import tests.conftest  # noqa: F401 - it names the environments
from tests.bench.data import functions
from tests.bench.page import PAGE, machine, put, table
from tests.train.conftest import ROOT, train_python, write_run

LAYERS, LENGTH, BATCH, ROWS = 4, 256, 4, 600
RATE = 1e-5
GOAL_BARE, GOAL_TRL = 0.97, 1.0
LOOP, BARE = "`swiftlaunch`", "bare Megatron-core"
PACKED, BARE_PACKED = "`swiftlaunch`, packed", "bare Megatron-core, packed"
TRL, TRL_PACKED = "TRL's SFTTrainer", "TRL's SFTTrainer, packed"


class Turn(NamedTuple):
    """A few steps of one trainer."""

    wall: float  # seconds
    processor: float  # seconds of all threads
    tokens: int


class Trainer:
    """A process that trains when it is its turn."""

    def __init__(self, folder: Path, program: str, settings: str) -> None:
        self.log = folder / "log"
        trl = os.environ["SWIFTLAUNCH_TEST_TRL"] if program == "trl" else ""
        variables = {
            "PYTHONPATH": f"{ROOT}:{trl}".rstrip(":"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "SWIFTLAUNCH_ATTEMPT": "1",
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [train_python(), "-m", "tests.bench.trainers", program, settings],
                env={**os.environ, **variables},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def turn(self, steps: int) -> Turn:
        """Run so many steps. Raises SystemExit where the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(steps, file=self.process.stdin, flush=True)
            return Turn(*json.loads(self.process.stdout.readline()))
        except (BrokenPipeError, ValueError):
            raise SystemExit(f"{' '.join(map(str, self.process.args))}\n{self.log.read_text()[-3000:]}") from None  # type: ignore[union-attr]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.training")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write a section of")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="swiftlaunch-bench-") as name, ExitStack() as stack:
        trainers = started(Path(name))
        for trainer in trainers.values():
            stack.callback(trainer.end)
        for trainer in trainers.values():  # the first steps also set things up
            trainer.turn(2)
        rounds = []
        for number in range(options.rounds):  # to and fro, so that nobody is always the first after a change of load
            order = list(trainers) if number % 2 else list(reversed(trainers))
            rounds.append({name: trainers[name].turn(options.steps) for name in order})
    text = section(rounds, options.steps)
    print(text)
    put("Training", text, options.page)
    slow = [name for name, (base, goal) in GOALS.items() if ratio(rounds, name, base) < goal]
    if slow:
        sys.exit("slower than wanted: " + ", ".join(slow))


GOALS = {LOOP: (BARE, GOAL_BARE), PACKED: (TRL, GOAL_TRL)}


def started(folder: Path) -> dict[str, Trainer]:
    """All trainers, on the same model and rows."""
    model = folder / "model"
    cut = ROOT / "tests/engines/cut_model.py"
    words = [train_python(), str(cut), os.environ["SWIFTLAUNCH_TEST_MODEL"], str(model), str(LAYERS)]
    subprocess.run(words, check=True, capture_output=True)
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in fitting(model)))
    plans = {name: str(plan(folder / name.strip("`") / "run", model, rows, packing)) for name, packing in WAYS.items()}
    trainers = {}
    for name, given in plans.items():
        program = "bare" if name in (BARE, BARE_PACKED) else "loop"
        trainers[name] = Trainer(Path(given).parent, program, given)
    for name, packing in ((TRL, False), (TRL_PACKED, True)):
        place = folder / name
        place.mkdir()
        settings = {
            "model": str(model), "rows": str(rows), "folder": str(place), "batch": BATCH, "length": LENGTH,
            "learning_rate": RATE, "packing": packing,
        }  # fmt: skip
        trainers[name] = Trainer(place, "trl", json.dumps(settings))
    return trainers


WAYS = {LOOP: False, BARE: False, PACKED: True, BARE_PACKED: True}


def plan(folder: Path, model: Path, rows: Path, packing: bool) -> Path:
    """The plan of a run that trains the whole model in one process."""
    settings: dict[str, Any] = {
        "tuner": "full", "steps": 10**9, "global_batch_size": BATCH, "micro_batch_size": BATCH, "packing": packing,
        "sequence_length": LENGTH, "learning_rate": RATE, "schedule": "constant", "warmup_steps": 0,
        "checkpoint": {"every_steps": 10**9, "keep_last": 1, "save_optimizer": True},
    }  # fmt: skip
    data = {"source": "files", "train": [str(rows)], "evaluation": [], "format": "prompt_completion"}
    return write_run(folder, model, 1, data, settings).files.plan


def fitting(model: Path) -> list[dict[str, str]]:
    """Documented functions that are short enough for a sequence, so that no trainer cuts or leaves out any."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    found: list[dict[str, str]] = []
    for row in islice(functions(), 20 * ROWS):
        prompt, answer = row.messages[0]["content"], row.answer
        if len(tokenizer.encode(prompt + answer)) <= LENGTH - 40:  # the template's tokens
            found.append({"prompt": prompt, "completion": answer})
        if len(found) == ROWS:
            break
    return found


def ratio(rounds: Sequence[dict[str, Turn]], name: str, base: str, *, processor: bool = False) -> float:
    """Median over the rounds of tokens a second over those of `base`."""

    def rate(turn: Turn) -> float:
        return turn.tokens / (turn.processor if processor else turn.wall)

    return statistics.median(rate(each[name]) / rate(each[base]) for each in rounds)


def section(rounds: Sequence[dict[str, Turn]], steps: int) -> str:
    """What was found, as a section of the page."""

    def row(name: str, base: str) -> Sequence[str]:
        tokens = statistics.median(each[name].tokens / each[name].wall for each in rounds)
        ratios = (ratio(rounds, name, base, processor=processor) for processor in (False, True))
        return name, f"{tokens:.0f}", *(f"{found:.3f}" for found in ratios)

    def rows(base: str, *names: str) -> list[Sequence[str]]:
        return [row(name, base) for name in (base, *names)]

    head = ("what", "tokens/s", "ratio", "ratio by CPU time")
    code = "from importlib.metadata import version; import sys; print(*map(version, sys.argv[1:]))"
    words = [train_python(), "-c", code, "torch", "megatron-core", "transformers"]
    versions = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    trl_version = (ROOT / "tests/train/trl.txt").read_text().split("trl==")[1].strip()
    about = (
        f"SmolLM2-135M cut to {LAYERS} layers is trained whole, in fp32, by one process with one thread on {machine()} "
        f"(torch {versions[0]}, megatron-core {versions[1]}, transformers {versions[2]}, TRL {trl_version}). Rows are "
        f"documented Python functions of up to {LENGTH} tokens, {BATCH} in a batch; tokens are those of the rows, "
        f"padding is not counted. Trainers take turns of {steps} steps; {len(rounds)} rounds. Load average "
        f"{os.getloadavg()[2]:.1f} over the quarter of an hour before the end."
    )
    beside = (
        "The loop as a job runs it, with events, TensorBoard and times by parts, beside a loop of "
        "Megatron-core's schedule and optimizer alone on batches that were made before. Neither saves a checkpoint."
    )
    trl = (
        "The same rows in TRL, which pads each batch to its longest row. Its own packing has no exact boundaries here: "
        "without flash attention rows see each other. Recomputed activations, its default, are off."
    )
    return "\n\n".join(
        [
            textwrap.fill(about, 118),
            textwrap.fill(beside, 118),
            table(head, [*rows(BARE, LOOP), *rows(BARE_PACKED, PACKED)]),
            textwrap.fill(trl, 118),
            table(head, rows(TRL, TRL_PACKED, LOOP, PACKED)),
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
