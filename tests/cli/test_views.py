"""Views as text: from plans and statuses made by hand, on narrow, wide and plain consoles."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.plan import Plan
from launcher.record import Recorder
from launcher.rundir import RunDir
from launcher.standing import RunStatus, StageStatus
from launcher.states import State
from launcher.view.console import console
from launcher.view.course import Courses
from launcher.view.follow import show_status, show_while_running
from launcher.view.plan_table import show_plan
from launcher.view.runs_table import show_runs
from launcher.view.summary import show_summary
from launcher.view.words import clock, sparkline

pytestmark = pytest.mark.unit

Make = Callable[..., StageStatus]
LONG = "a-recipe-whose-name-is-as-long-as-people-make-them-and-then-some-学習の記録-20261122"


def shown(show: Callable[..., object], *arguments: object, width: int = 140, **options: object) -> list[str]:
    """What a view prints without a terminal, a line each, without the spaces that fill table cells."""
    file = io.StringIO()
    show(*arguments, console(file, width=width), **options)
    assert "\x1b" not in file.getvalue()
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_plan_wide(plan: Plan) -> None:
    assert shown(show_plan, plan, why_site="--site", explain=True) == [
        "chain-sum",
        "site local (--site), local scheduler; smollm2-135m-instruct, 134.5 M parameters",
        "stage     worker    layout  nodes x tasks  CPUs  memory   est.  time limit  est.  environment   engine",
        "baseline  evaluate  -       1 x 1             2      4G   1.5G         30m    1m  transformers  -",
        "train     train     PP2     1 x 2             2      6G     4G          1h    5m  train         megatron sft",
        "export    export    -       1 x 1             2      4G      -         30m     -  transformers  -",
        "evaluate  evaluate  -       1 x 1             2      4G   1.5G         30m    1m  transformers  -",
        "quantize  quantize  -       1 x 1             2      4G   1.5G         30m    1m  transformers  gptq 4 bit",
        "serve     serve     -       1 x 1             2      4G   1.5G         30m    1m  transformers  transformers",
        "total: 6 stages, about 9m one after another (1 without estimate), at most 3h30m by their time limits",
        "estimates of baseline, evaluate, quantize, serve: parameters and problems",
        "estimates of train: measured tokens per second",
        "warning: 64 problems make a standard error of 6 points",
    ]


def test_plan_narrow_with_gpus(plan: Plan) -> None:
    need = dataclasses.replace(plan.stages[1].resources, gpus_per_node=8, nodes=4)
    train = dataclasses.replace(plan.stages[1], resources=need)
    lines = shown(show_plan, dataclasses.replace(plan, stages=(train,)), width=80)
    assert lines[2:5] == [
        "stage layout tasks CPUs GPUs memory (est.) time (est.) environment",
        "train PP2    4 x 2    2    8 6G (4G)       1h (5m)     train",
        "total: 1 stage, about 5m one after another, at most 1h by their time limits, at",
    ]
    assert lines[5] == "most 32.0 GPU hours"


def test_status_of_a_running_run(finished: RunStatus, stage_status: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1725.0)
    step = {"kind": "step", "time": 1700.0, "attempt": 2, "step": 30, "steps": 60, "loss": 0.51234, "seconds": 2.0}
    stages = (
        finished.stages[0],
        stage_status("train", State.RUNNING, attempts=2, started=1000.0, step={**step, "tokens_per_second": 1234.5}),
        stage_status("export", State.PENDING, reason="Dependency"),
        stage_status("serve", State.FAILED, error="rank 0: no [memory]\nleft"),
    )
    status = dataclasses.replace(finished, stages=stages, state="RUNNING", warnings=())
    assert shown(show_status, status) == [
        "chain-sum-20261122-140359-a1b2  RUNNING  local",
        "baseline  COMPLETED       0:50  accuracy 4.7 ± 2.6 %, perplexity 12.31",
        "train     RUNNING    #2  12:05  ━━━━━━━━━━··········  30/60 steps  loss 0.512  1.2 k tok/s  ETA 0:35",
        "export    PENDING               Dependency",
        "serve     FAILED                rank 0: no [memory] left",
        "serve: rank 0: no [memory]",
        "left",
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_long_and_wide_text_keeps_to_the_width(width: int, finished: RunStatus, stage_status: Make, plan: Plan) -> None:
    from rich.cells import cell_len

    stages = (*finished.stages, stage_status("evaluate-quantized", State.FAILED, error="语" * 200, attempts=12))
    status = dataclasses.replace(finished, run_id=LONG, stages=stages)
    rows = [{"run_id": LONG, "state": "RUNNING", "site": "a-centre-with-a-name", "submitted": 0.0}]
    for lines in (shown(show_status, status, width=width), shown(show_runs, rows, width=width)):
        assert max(cell_len(line) for line in lines) <= width
        assert "COMPLETED" in "".join(lines) or "RUNNING" in "".join(lines)


def test_summary(finished: RunStatus, plan: Plan) -> None:
    files = RunDir(finished.run_dir)
    for stage in ("export", "quantize"):
        files.artifact(stage).mkdir(parents=True)
    root = str(files.root)
    assert shown(show_summary, finished, plan) == [
        "",
        "chain-sum-20261122-140359-a1b2  COMPLETED in 9 min 10 s",
        "",
        "                             before         after  quantized",
        "accuracy (64 problems)  4.7 ± 2.6 %  62.5 ± 6.0 %     59.4 %",
        "perplexity                    12.31          4.50          -",
        "size                              -       513 MiB    121 MiB",
        "",
        "stage     state      time  result",
        "baseline  COMPLETED  50 s  accuracy 4.7 ± 2.6 %, perplexity 12.31",
        "train     COMPLETED  50 s  loss 0.251, 60 steps, 1.2 k tok/s",
        "export    COMPLETED  50 s  513 MiB, 134.5 M parameters",
        "evaluate  COMPLETED  50 s  accuracy 62.5 ± 6.0 %, perplexity 4.50",
        "quantize  COMPLETED  50 s  accuracy 59.4 %, 513 MiB -> 121 MiB at 4 bit",
        "serve     COMPLETED  50 s  answered in 3.2 s",
        "",
        "served by transformers:",
        "  > What is 2 + 2?",
        "  It is [4].",
        "",
        f"run       {root}",
        f"export    {root}/stages/export/artifact",
        f"quantize  {root}/stages/quantize/artifact",
        "serve it again: swiftlaunch serve chain-sum-20261122-140359-a1b2 --minutes 60",
    ]


def test_summary_of_a_failed_run_says_what_to_do(finished: RunStatus, plan: Plan, stage_status: Make) -> None:
    stages = (*finished.stages[:1], stage_status("train", State.OUT_OF_MEMORY, error="rank 1: out of memory"))
    status = dataclasses.replace(finished, stages=stages, state="FAILED")
    assert shown(show_summary, status, plan)[-2:] == [
        f"see why train ended: swiftlaunch logs {status.run_id} train",
        f"go on from what is saved: swiftlaunch resume {status.run_id}",
    ]


def test_plain_lines_are_few(finished: RunStatus, stage_status: Make) -> None:
    def look(step: int, state: State = State.RUNNING) -> RunStatus:
        event = {"kind": "step", "time": 1000.0 + step, "attempt": 1, "step": step, "steps": 500, "loss": 1.0 / step}
        return dataclasses.replace(finished, stages=(stage_status("train", state, step=event, started=1000.0),))

    lines = shown(show_while_running, [*(look(step) for step in range(1, 500)), look(500, State.FAILED)])
    words = [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in lines]
    assert words == ["train  RUNNING    1/500 steps  loss 1.000", "train  FAILED"]


def test_live_view_ends_with_the_last_status(finished: RunStatus, stage_status: Make) -> None:
    from rich.console import Console

    file = io.StringIO()
    before = dataclasses.replace(finished, state="RUNNING", stages=(stage_status("train", State.RUNNING),))
    terminal = Console(file=file, force_terminal=True, width=100, color_system=None)
    assert show_while_running([before, finished], terminal) is finished
    last = file.getvalue().rsplit("RUNNING", 1)[1]
    assert "answered in 3.2 s" in last
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_server_address_is_shown_while_it_runs(finished: RunStatus, stage_status: Make) -> None:
    endpoint = {"host": "node3", "port": 8123}
    running = dataclasses.replace(finished, stages=(stage_status("serve", State.RUNNING, endpoint=endpoint),))
    assert shown(show_status, running)[1].endswith("answers at http://node3:8123/v1")
    assert "http" not in "".join(shown(show_status, finished))


def test_course_of_a_resumed_stage(tmp_path: Path, stage_status: Make) -> None:
    files = RunDir(tmp_path)
    for attempt, first in ((1, 1), (2, 3)):
        recorder = Recorder(files.event_file("train", attempt, 0), stage="train", attempt=attempt, rank=0)
        for number in range(first, first + 3):
            seconds = 100.0 * attempt + 2 * number
            recorder.event("step", seconds, step=number, steps=10, loss=float(number), seconds=9.0)
    newest = {"kind": "step", "time": 212.0, "attempt": 2, "step": 6, "steps": 10, "loss": 6.0}
    course = Courses(tmp_path).look(stage_status("train", State.RUNNING, step=newest))
    assert course is not None
    assert course.losses == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)  # step 3 was done twice and counts once
    assert course.seconds_per_unit == 2.0
    assert course.seconds_left(now=213.0) == 7.0


def test_words() -> None:
    assert [clock(seconds) for seconds in (7, 725, 3723, 183600)] == ["0:07", "12:05", "1:02:03", "2d 03:00:00"]
    assert sparkline([0.0, 1.0, 2.0, 7.0], 4) == "▁▂▃█"
    assert sparkline([1.0] * 100, 5) == "▁▁▁▁▁"
    assert sparkline([], 5) == ""
