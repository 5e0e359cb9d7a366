"""What a run used, and what Slurm says of a plan: computed and shown from values made by hand."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher import usage
from launcher.cli import run
from launcher.errors import Fault
from launcher.plan import Plan
from launcher.record import write_json
from launcher.rundir import RunDir
from launcher.scheduler.admission import Admission
from launcher.scheduler.base import Machine, Use
from launcher.scheduler.local.client import LocalScheduler
from launcher.states import State
from launcher.view.admission import show_admission
from launcher.view.console import console
from launcher.view.usage import show_usage

pytestmark = pytest.mark.unit

DONE = State.COMPLETED


def lines(show: Callable[..., object], value: object) -> list[str]:
    file = io.StringIO()
    show(value, console(file, width=140))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def one(state: State = DONE, **given: object) -> Use:
    base = {"seconds": 1200.0, "nodes": 2, "cpus": 8, "gpus": 4, "memory_mib": 6144.0, "limit_seconds": 3600.0}
    return Use("7", state, **{"cpu_seconds": 4800.0, "peak_mib": 2000.0, **base, **given})  # type: ignore[arg-type]


def test_all_runs_of_a_stage_add_up(plan: Plan) -> None:
    train = plan.stage("train")  # 6 GiB, one hour
    cut = one(State.REQUEUED, seconds=600.0, peak_mib=None, cpu_seconds=None)
    found = usage.stage_use(train, [cut, one()])
    assert (found.runs, found.seconds, found.cut_seconds) == (2, 1800, 600)
    assert (found.node_hours, found.gpu_hours) == (1.0, 2.0)
    assert (found.peak_mib, found.cpu_seconds) == (2000, 4800)
    # 2000 MiB and a quarter; 30 minutes and half of that, 3 minutes, up to five
    assert usage.recipe_lines([found]) == ["[resources.train]", 'memory = "3G"', 'time_limit = "50m"']


@pytest.mark.parametrize(
    ("runs", "proposed"),
    [
        ([one(State.OUT_OF_MEMORY)], ['memory = "9G"']),
        ([one(State.TIMEOUT)], ['time_limit = "2h"']),
        ([one(State.FAILED)], []),
        ([one(peak_mib=None, cpu_seconds=None, seconds=1500.0)], ['time_limit = "45m"']),
        ([one(peak_mib=4900.0, seconds=2200.0)], []),  # what was asked for fits
        ([one(seconds=1.0, peak_mib=1.0)], ['memory = "1G"', 'time_limit = "10m"']),
    ],
    ids=["out of memory", "out of time", "failed", "not measured", "fits", "least"],
)
def test_what_to_ask_for_next_time(runs: list[Use], proposed: list[str], plan: Plan) -> None:
    assert usage.recipe_lines([usage.stage_use(plan.stage("train"), runs)])[1:] == proposed


def test_idle_cpus(plan: Plan) -> None:
    stage = plan.stage("evaluate")  # two CPUs, no GPU
    stage = dataclasses.replace(stage, resources=dataclasses.replace(stage.resources, cpus_per_task=8))
    idle = one(cpus=8, cpu_seconds=0.2 * 8 * 1200)
    assert usage.stage_use(stage, [idle]).needs["cpus_per_task"] == 2
    busy = one(cpus=8, cpu_seconds=0.6 * 8 * 1200)
    assert usage.stage_use(stage, [busy]).needs["cpus_per_task"] == 8
    server = dataclasses.replace(stage, name="serve", worker="serve")
    assert "time_limit" not in usage.stage_use(server, [idle]).needs


def test_stages_that_share_a_table_get_the_larger_value(plan: Plan) -> None:
    quantize = plan.stage("quantize")
    after = dataclasses.replace(quantize, name="evaluate-quantized", worker="evaluate")
    stages = [
        usage.stage_use(quantize, [one(peak_mib=9000.0)]),
        usage.stage_use(after, [one(peak_mib=100.0, seconds=7200.0)]),
    ]
    assert usage.recipe_lines(stages) == ["[resources.quantize]", 'memory = "11G"', 'time_limit = "3h5m"']
    unknown = usage.stage_use(after, [one(peak_mib=None)])
    small = usage.stage_use(quantize, [one(peak_mib=100.0, seconds=60.0)])
    assert usage.recipe_lines([small, unknown]) == ["[resources.quantize]", 'time_limit = "35m"']


def test_the_table(plan: Plan) -> None:
    stages = [
        usage.stage_use(plan.stage("baseline"), [one(gpus=0, nodes=1, cpus=2, cpu_seconds=1800.0, peak_mib=None)]),
        usage.stage_use(plan.stage("train"), [one(State.REQUEUED, seconds=600.0), one()]),
    ]
    assert [" ".join(line.split()) for line in lines(show_usage, stages)] == [
        "stage state runs time of limit CPU of asked memory of asked node h GPU h",
        "baseline COMPLETED 1 20 min 00 s of 1 h 00 min 75% of 2 - 0.33 0.00",
        "train COMPLETED 2 30 min 00 s of 1 h 00 min 67% of 8 2.0 GiB of 6.0 GiB 1.00 2.00",
        "total: 1.33 node hours, 2.00 GPU hours, 1.50 CPU hours idle, 10 min 00 s in runs that were cut or failed",
        "- was not measured: Slurm samples memory every so often, by default every 30 s",
        "",
        "next time (a quarter more memory and half more time than this run took):",
        "[resources.baseline]",
        'time_limit = "35m"',
        "[resources.train]",
        'memory = "3G"',
        'time_limit = "50m"',
    ]


def test_the_local_scheduler_measures_too(
    plan: Plan, run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state_dir = tmp_path / "state" / "swiftlaunch" / "local"
    scheduler = LocalScheduler(state_dir, machine=Machine(nodes=1, cpus=2, memory_mib=1000))
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --time=5 --mem=500M --output=/dev/null --ntasks-per-node=2\n"
        "python3 -c 'x = bytearray(50 * 2**20); sum(range(3_000_000))'\n"
    )
    job_id = scheduler.submit(script)
    for _ in range(600):
        if scheduler.jobs([job_id])[job_id].state.terminal:
            break
        time.sleep(0.1)
    write_json(run_dir.jobs, {"train": [job_id, ""]})
    assert run(["usage", "latest", "--json"]) == 0
    (train,) = json.loads(capsys.readouterr().out)["stages"]
    assert (train["state"], train["runs"], train["memory_mib"], train["limit_seconds"]) == ("COMPLETED", 1, 500, 300)
    assert 2 * 50 < train["peak_mib"] < 2 * 200  # two tasks
    assert 0 < train["cpu_seconds"] < 60


def test_nothing_has_run(run_dir: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["usage", "latest"]) == 0
    assert "nothing is known" in capsys.readouterr().err


def test_what_slurm_says_before() -> None:
    answer = Admission(
        faults=(Fault("stage train", "asks for 9 GPUs", "ask for less"),),
        starts=(("baseline", 0.0), ("train", 0.0)),
        fair_share="fair share 0.50 of 1",
    )
    assert lines(show_admission, answer) == [
        "submit would refuse: stage train: asks for 9 GPUs",
        "  hint: ask for less",
        "Slurm would start baseline and train now",
        "fair share 0.50 of 1",
    ]
    assert lines(show_admission, Admission(trouble="it is down")) == ["Slurm was not asked: it is down"]
