"""A run that is stopped and goes on in another layout ends with the weights of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import subprocess
from array import array
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from launcher.plan import Resources, from_json
from launcher.record import read_events

from .conftest import HERE, ROOT, Attempt, Run, train_python, write_run
from .test_preference import made

pytestmark = pytest.mark.layout

STEPS = 9
# a stop is heeded in the step after it, so an attempt that stops does two steps at least
STOPS = [stops for stops in combinations(range(1, STEPS - 1), 3) if all(b - a > 1 for a, b in pairwise(stops))]
CHECKPOINT = {"every_steps": 3, "keep_last": 2, "save_optimizer": True}
COMMON: dict[str, Any] = {"steps": STEPS, "checkpoint": CHECKPOINT, "learning_rate": 1e-3, "warmup_steps": 0}
TP2: dict[str, Any] = {"tensor": 2, "sequence_parallel": True}
PP2: dict[str, Any] = {"pipeline": 2}
VPP2: dict[str, Any] = {"pipeline": 2, "virtual_pipeline": 2}
CP2: dict[str, Any] = {"context": 2}
EP2: dict[str, Any] = {"expert": 2}
# name -> model, what differs from COMMON, (ranks, layout) of the attempts one after the other
RUNS: dict[str, tuple[str, dict[str, Any], list[tuple[int, dict[str, Any]]]]] = {
    "lora": ("llama", {}, [(1, {}), (2, TP2), (2, PP2), (2, {})]),
    "full": ("llama", {"tuner": "full"}, [(1, {}), (2, {}), (2, VPP2), (2, CP2)]),
    "full-back": ("qwen3", {"tuner": "full"}, [(2, {}), (2, PP2), (2, TP2), (1, {})]),
    "packed": ("qwen3", {"packing": True}, [(1, {}), (2, CP2), (2, TP2), (2, {})]),
    "moe": ("moe", {}, [(1, {}), (2, EP2), (2, PP2), (2, EP2)]),
    "moe-full": ("moe", {"tuner": "full"}, [(2, EP2), (2, {}), (2, EP2), (1, {})]),
    "latent": ("deepseek_v3", {"tuner": "full"}, [(2, {**TP2, **EP2}), (2, PP2), (2, EP2), (1, {})]),
    "dpo-full-precomputed": ("llama", {}, [(1, {}), (2, PP2), (2, TP2), (2, {})]),
    "rm": ("llama", {}, [(1, {}), (2, TP2), (2, VPP2), (2, {})]),
}  # fmt: skip


def make(folder: Path, name: str, tiny_model: Callable[[str], Path]) -> Run:
    kind, settings, _ = RUNS[name]
    settings = {**COMMON, **settings}
    if name.startswith(("dpo", "rm")):
        return made(folder, tiny_model(kind), name, 1, {}, **settings)
    return write_run(folder, tiny_model(kind), 1, {}, settings)


def in_layout(run: Run, number: int, ranks: int, layout: dict[str, Any]) -> Path:
    """A plan of the same run with other ranks."""
    plan = from_json(run.files.plan.read_text())
    train = plan.stage("train")
    options = {**train.options, "train": {**train.options["train"], "layout": layout}}
    stage = replace(train, options=options, resources=Resources(1, ranks, 1, 0, 4096, 60))
    path = run.files.root / f"plan-{number}.json"
    path.write_text(replace(plan, stages=(stage, *plan.stages[1:])).to_json())
    return path


def attempt(ranks: int, words: list[str], folder: Path) -> None:
    """Run these attempts in one process a rank."""
    folder.mkdir(parents=True)
    started = Attempt([], [folder / f"rank-{rank}.log" for rank in range(ranks)])
    for rank, log in enumerate(started.logs):
        places = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": str(ranks)}
        with log.open("wb") as out:
            started.processes.append(
                subprocess.Popen(
                    [train_python(), str(HERE / "attempts.py"), *words],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **places},
                    stdout=out,
                    stderr=subprocess.STDOUT,
                )
            )
    codes = started.wait(600)
    assert codes == [0] * ranks, started.text()


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]
) -> dict[str, tuple[Run, Run, tuple[int, ...]]]:
    """By name: the undisturbed run in the first layout, the interrupted one, and after which steps it stopped."""
    root = tmp_path_factory.mktemp("reshard")
    found, waves = {}, {}
    for name, (_, _, layouts) in RUNS.items():
        whole, broken = make(root / f"{name}-whole", name, tiny_model), make(root / f"{name}-broken", name, tiny_model)
        stops = random.SystemRandom().choice(STOPS)
        found[name] = (whole, broken, stops)
        waves.setdefault((0, layouts[0][0]), []).append(f"{in_layout(whole, 0, *layouts[0])}@1@0")
        wave, before = 0, layouts[0][0]
        for number, ((ranks, layout), stop) in enumerate(zip(layouts, [*stops, 0], strict=True), 1):
            wave, before = wave + (ranks != before), ranks
            waves.setdefault((wave, ranks), []).append(f"{in_layout(broken, number, ranks, layout)}@{number}@{stop}")
    for (wave, ranks), words in sorted(waves.items()):
        attempt(ranks, words, root / f"wave-{wave}-{ranks}")
    return found


@pytest.mark.parametrize("name", RUNS)
def test_stopped_three_times_and_resumed_in_other_layouts(
    finished: dict[str, tuple[Run, Run, tuple[int, ...]]], name: str
) -> None:
    whole, broken, stops = finished[name]
    one, two = weights(whole), weights(broken)
    assert one.keys() == two.keys()
    far = max(abs(a - b) for key in one for a, b in zip(one[key], two[key], strict=True))
    print(name, "stopped after", stops, "weights differ by", far)
    resharded = [event for event in read_events(broken.files.events, stage="train") if event["kind"] == "resharded"]
    changes = sum(a != b for a, b in pairwise(RUNS[name][2]))
    assert len(resharded) == changes, resharded
    assert whole.losses()[-1] < whole.losses()[0] - 0.02, "too little was learnt for this to prove anything"
    assert broken.losses() == pytest.approx(whole.losses(), abs=1e-4)
    assert broken.norms() == pytest.approx(whole.norms(), rel=1e-3)
    assert far < 1e-5, f"stopped after {stops}"


def weights(run: Run) -> dict[str, array[float]]:
    """The trained fp32 weights by name."""
    (file,) = run.files.artifact("train").glob("*.safetensors")
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    found = {}
    for name, facts in header.items():
        if name != "__metadata__":
            assert facts["dtype"] == "F32", facts
            first, last = facts["data_offsets"]
            found[name] = array("f", data[start + first : start + last])
    return found
