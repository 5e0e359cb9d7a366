"""The rendered job script under the local scheduler: how attempts end, and what becomes of the chain.

The worker is a probe that does what the test tells it; script, srun, scheduler and exit codes are the real ones.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
from pathlib import Path

import pytest

from launcher.failures import HANG, first_failure
from launcher.record import read_events
from launcher.scheduler import Scheduler, default_state_dir, open_scheduler
from launcher.scheduler.base import Machine
from launcher.states import State
from launcher.submission import resume
from tests.chain.probe import Chain

pytestmark = pytest.mark.local


@pytest.fixture
def scheduler(tmp_path: Path) -> Scheduler:
    return open_scheduler("local", state_dir=tmp_path / "state", machine=Machine(nodes=2, cpus=4, memory_mib=1024))


def test_chain_completes(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "a run", scheduler, {"first": ["done"], "second": ["done"]}, nodes=2, tasks_per_node=2)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.job("first").state is State.COMPLETED
    result = json.loads(chain.files.result("second").read_text())
    assert result["metrics"] == {"acts": "done", "world_size": 4}
    assert [path.name for path in sorted(chain.files.attempt("first", 1).glob("rank-*.log"))] == [
        f"rank-{rank}.log" for rank in range(4)
    ]


def test_a_rank_leaves_no_folder_and_no_process(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["litter"]})
    assert chain.ended("first").state is State.COMPLETED
    (folder, helper) = next(e["value"] for e in read_events(chain.files.events) if e.get("name") == "litter")
    assert folder.startswith(tempfile.gettempdir())
    assert not Path(folder).exists()
    assert not Path(f"/proc/{helper}").exists()


@pytest.mark.parametrize("act", ["kill", "net", "half"])
def test_crash_is_tried_again_and_the_chain_goes_on(tmp_path: Path, scheduler: Scheduler, act: str) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": [act, "done"], "second": ["done"]}, tasks_per_node=2)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == [act, "done"]
    assert chain.job("first").restarts == 1
    assert chain.files.crashed("first", 1).exists()


def test_crashes_are_bounded(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["net"], "second": ["done"]})
    first = chain.ended("first")
    assert (first.state, first.exit_code) == (State.FAILED, 1)
    assert chain.attempts("first") == ["net", "net", "net"]
    assert chain.ended("second").state is State.CANCELLED
    assert "crashed 3 times" in chain.files.batch_log("first").read_text()


def test_fault_of_the_recipe_is_not_tried_again(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["wrong"], "second": ["done"]})
    first = chain.ended("first")
    assert (first.state, first.exit_code) == (State.FAILED, 78)
    assert chain.attempts("first") == ["wrong"]
    assert json.loads(chain.files.failure("first", 1, 0, fatal=True).read_text())["error"] == "the layers do not divide"
    assert chain.ended("second").state is State.CANCELLED


def test_asked_to_stop_is_requeued_without_counting_as_a_crash(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["wait", "wait", "wait", "wait", "done"]})
    for attempt in range(1, 5):
        chain.until(lambda attempt=attempt: len(chain.attempts("first")) == attempt)  # type: ignore[misc]
        starts = [e for e in read_events(chain.files.events) if e["kind"] == "attempt_started"]
        os.kill(int(starts[-1]["pid"]), signal.SIGUSR2)
    assert chain.ended("first").state is State.COMPLETED
    assert not list(chain.files.root.glob("logs/first/attempt-*/crashed"))


def test_cancel_is_not_requeued(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["wait"], "second": ["done"]})
    chain.until(lambda: chain.attempts("first") == ["wait"])
    chain.files.cancelled("first").touch()
    chain.scheduler.cancel([chain.jobs["first"]])
    assert chain.ended("first").state is State.CANCELLED
    assert chain.ended("second").state is State.CANCELLED
    assert chain.attempts("first") == ["wait"]


def test_resume_replaces_a_job_that_waits_for_a_failed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    scheduler = open_scheduler("local", state_dir=default_state_dir())
    chain = Chain(tmp_path / "a run", scheduler, {"first": ["wrong", "done"], "second": ["done"]})
    assert chain.ended("first").state is State.FAILED
    chain.ended("second")
    stale = tmp_path / "stale.sh"  # as Slurm leaves one in the queue for a while
    stale.write_text("#!/bin/bash\n#SBATCH --time=5\nsleep 600\n")
    waits = scheduler.submit(stale)
    assert resume(chain.files.root, chain.plan, lambda: {"second": waits}) == ["first", "second"]
    chain.jobs = {stage: ids[-1] for stage, ids in json.loads(chain.files.jobs.read_text()).items()}
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == ["wrong", "done"]
    assert scheduler.jobs([waits])[waits].state is State.CANCELLED


def test_continuation_jobs_go_on_where_nothing_is_requeued(tmp_path: Path, scheduler: Scheduler) -> None:
    acts = {"first": ["net", "done"], "second": ["done"]}
    chain = Chain(tmp_path / "run", scheduler, acts, mode="chain", continuations=2)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == ["net", "done"]  # the third job has ended at once
    assert chain.attempts("second") == ["done"]
    assert chain.files.crashed("first", 1).exists()


def test_no_continuation_of_what_would_fail_again(tmp_path: Path, scheduler: Scheduler) -> None:
    acts = {"first": ["wrong", "done"], "second": ["done"]}
    chain = Chain(tmp_path / "run", scheduler, acts, mode="chain", continuations=2)
    assert chain.ended("second").state is State.CANCELLED
    assert chain.attempts("first") == ["wrong"]
    assert chain.job("first").exit_code == 78


def test_backoff_holds_where_the_scheduler_cannot_be_told(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["net", "done"]}, backoff_seconds=2)
    assert chain.ended("first").state is State.COMPLETED
    times = [e["time"] for e in read_events(chain.files.events) if e["kind"] == "attempt_started"]
    assert times[1] - times[0] >= 1  # whole seconds


def test_stops_that_save_nothing_are_bounded(tmp_path: Path, scheduler: Scheduler) -> None:
    chain = Chain(tmp_path / "run", scheduler, {"first": ["idle"]}, idle_attempts=3)
    assert chain.ended("first").state is State.FAILED
    assert chain.attempts("first") == ["idle"] * 3
    assert chain.files.given_up("first").read_text() == "nothing new was saved in 3 attempts\n"


@pytest.mark.parametrize("act", ["stall", "freeze", "grip"])
def test_a_hang_is_found_and_told(tmp_path: Path, scheduler: Scheduler, act: str) -> None:
    """Everybody waits; one rank is stopped, as by a debugger; one rank never lets go of the interpreter."""
    limits = {"hang_factor": 2.0, "hang_floor_seconds": 1.0, "hang_start_seconds": 60.0}
    acts = {"first": [act, "done"], "second": ["done"]}
    chain = Chain(tmp_path / "run", scheduler, acts, tasks_per_node=2, **limits)
    assert chain.ended("second").state is State.COMPLETED
    assert chain.attempts("first") == [act, "done"]
    failure = first_failure(chain.files.attempt("first", 1), "first")
    assert failure is not None
    assert failure.kind == HANG
    assert "after step 7" in failure.error
    stacks = [chain.files.stacks("first", 1, rank).read_text() for rank in (0, 1)]
    assert "probe.py" in stacks[0]
    if act == "stall":
        assert "all ranks answer" in failure.error
        assert "probe.py" in stacks[1]
    else:
        assert "rank 1 without an answer" in failure.error
        assert failure.rank == 1
        assert ("(stopped)" if act == "freeze" else "is in state R") in stacks[1]
    assert not chain.files.stacks("first", 2, 0).exists()


def test_a_hang_that_holds_the_interpreter_and_has_no_witness(tmp_path: Path, scheduler: Scheduler) -> None:
    # the clock may have been set last when nobody knew yet how long a step takes: then the start's limit holds
    limits = {"hang_factor": 2.0, "hang_floor_seconds": 1.0, "hang_start_seconds": 15.0}
    chain = Chain(tmp_path / "run", scheduler, {"first": ["grip", "done"]}, **limits)
    assert chain.ended("first").state is State.COMPLETED
    assert chain.attempts("first") == ["grip", "done"]
    failure = first_failure(chain.files.attempt("first", 1), "first")
    assert failure is not None
    assert (failure.kind, failure.rank) == (HANG, 0)
    assert "in match" in chain.files.stacks("first", 1, 0).read_text()
