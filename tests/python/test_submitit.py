"""submitit.AutoExecutor(cluster="swiftlaunch") on the local scheduler."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import submitit

import launcher
import launcher.submitit
from launcher.errors import InputError, SchedulerError, UserError
from launcher.scheduler import Job
from launcher.submitit import SwiftlaunchExecutor, SwiftlaunchJob
from tests.chain.conftest import User
from tests.python import functions

pytestmark = pytest.mark.local

PROGRAM = """\
import submitit
import helper

def call(left):
    import helper
    return helper.twice(left)

if __name__ == "__main__":
    executor = submitit.AutoExecutor("jobs", cluster="swiftlaunch", swiftlaunch_site="./here.toml")
    executor.update_parameters(timeout_min=10, mem_gb=0.25)
    with executor.batch():
        jobs = [executor.submit(call, "ab"), executor.submit(lambda: helper.twice("cd"))]
    print([job.result() for job in jobs])
"""


@pytest.fixture
def executor(here: User, monkeypatch: pytest.MonkeyPatch) -> submitit.AutoExecutor:
    monkeypatch.setattr(launcher.submitit, "_watchers", {})  # each test has a scheduler of its own, with a job 1
    executor = submitit.AutoExecutor("jobs of mine", cluster="swiftlaunch", swiftlaunch_site="./here.toml")
    executor.update_parameters(timeout_min=10, mem_gb=0.25)
    return executor


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_function_is_a_job_and_a_run(executor: submitit.AutoExecutor, here: User) -> None:
    job = executor.submit(functions.add, 20, right=22)
    assert isinstance(job, SwiftlaunchJob)
    assert job.result() == 42
    assert job.exception() is None
    assert job.done()
    assert job.stdout() == "adding 20 and 22\n"
    until(lambda: job.watcher.get_state(job.job_id, mode="force") == "COMPLETED")
    assert job.state == "COMPLETED"
    assert [run.run_id for run in launcher.runs()] == [job.run.run_id]
    assert job.run.status().succeeded
    assert job.run.logs("call") == job.stdout()
    assert job.run.plan.stages[0].resources.memory_mib == 256
    # the folder and the id are enough to find a job again, and jobs may be pickled
    assert SwiftlaunchJob[int](here.folder / "jobs of mine", job.job_id).result() == 42
    assert pickle.loads(pickle.dumps(job)).result() == 42
    with pytest.raises(UserError, match="no job 77"):
        SwiftlaunchJob[int](here.folder / "jobs of mine", "77")


def test_an_array_is_one_run_and_one_failure_stays_alone(executor: submitit.AutoExecutor) -> None:
    executor.update_parameters(swiftlaunch_array_parallelism=3)
    jobs = executor.map_array(functions.third_fails, range(5))
    assert [job.job_id.partition("_")[2] for job in jobs] == list("01234")
    assert [job.result() for job in jobs if job is not jobs[3]] == [0, 10, 20, 40]
    with pytest.raises(submitit.core.utils.FailedJobError, match="ValueError: three is not allowed"):
        jobs[3].result()
    assert "three is not allowed" in str(jobs[3].exception())
    (run,) = launcher.runs()
    assert run.wait(timeout=30, poll=0.1).state == "FAILED"
    assert [point.status().state for point in run.points()] == ["COMPLETED"] * 3 + ["FAILED", "COMPLETED"]
    with pytest.raises(launcher.RunFailed, match="three is not allowed"):
        run.points()[3].results()
    assert launcher.open_run(f"{run.run_id}/4").results()["call"].metrics.keys() == {"seconds"}
    with pytest.raises(UserError, match="has no point 5"):
        launcher.open_run("latest/5")
    assert run.points()[4].resume() == []
    assert run.points()[3].resume() == ["call/3"]
    assert run.points()[3].wait(timeout=60, poll=0.1).state == "FAILED"
    assert "--array" not in (run.run_dir / "scripts/call.0.sh").read_text()  # it stands on sbatch's command line


def test_a_program_with_modules_of_its_own(here: User) -> None:
    (here.folder / "program.py").write_text(PROGRAM)
    (here.folder / "helper.py").write_text("def twice(text):\n    return text + text\n")
    finished = subprocess.run([sys.executable, "program.py"], capture_output=True, text=True, timeout=90)
    assert finished.stdout == "['abab', 'cdcd']\n", finished.stderr


def test_every_task_has_a_result_and_the_place_it_was_submitted_from(
    executor: submitit.AutoExecutor, here: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", "of the program")
    with (here.folder / "here.toml").open("a") as site:
        site.write('[variables]\nOF_THE_SITE = "of the site"\n')
    executor.update_parameters(tasks_per_node=2, cpus_per_task=1)
    job = executor.submit(functions.where_am_i)
    found = job.results()
    assert [place["rank"] for place in found] == [0, 1]
    for place in found:
        assert place["job_id"] == job.job_id
        assert (place["tasks"], place["ours"], place["site"]) == (2, "of the program", "of the site")
        assert Path(place["cwd"]) == here.folder
    assert job.task(1).stdout() == ""


def test_a_rank_that_fails_fails_the_job(executor: submitit.AutoExecutor) -> None:
    executor.update_parameters(tasks_per_node=2, cpus_per_task=1)
    job = executor.submit(functions.last_rank_fails_slowly)
    assert job.task(0).result() == "done"
    trace = str(job.exception())
    assert "in last_rank_fails_slowly" in trace
    assert "the last rank cannot" in trace
    status = job.run.wait(timeout=60, poll=0.1)
    assert status.state == "FAILED"
    assert "the last rank cannot" in status.stages[0].error


def test_cancel_and_resume_keep_the_state(executor: submitit.AutoExecutor, here: User) -> None:
    stop = here.root / "stop"
    job = executor.submit(functions.Counter(), str(stop))
    until(lambda: "counting" in (job.stdout() or ""))
    job.cancel()
    until(lambda: job.watcher.get_state(job.job_id, mode="force") == "CANCELLED")
    assert job.done()
    job._results_timeout_s = 0
    with pytest.raises(submitit.core.utils.UncompletedJobError, match="state: CANCELLED"):
        job.result()
    stop.touch()
    assert job.run.resume() == ["call"]
    job.run.wait(timeout=60, poll=0.1)
    assert job.result() == [None, "1"]
    assert "counting [None]" in (job.stdout() or "")
    assert "counting [None, '1']" in (job.stdout() or "")


def test_a_scheduler_that_does_not_answer_or_has_forgotten(
    executor: submitit.AutoExecutor, here: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("submitit").addHandler(caplog.handler)  # it hands nothing on to the root
    job = executor.submit(functions.wait, 600)
    until(lambda: "waiting" in (job.stdout() or ""))
    until(lambda: job.watcher.get_state(job.job_id, mode="force") == "RUNNING")

    class Silent:
        def jobs(self, ids: Sequence[str]) -> dict[str, Job]:
            raise SchedulerError("squeue failed: Unable to contact slurm controller (connect failure)")

    class Forgetful:
        def jobs(self, ids: Sequence[str]) -> dict[str, Job]:
            return {job_id: Job(job_id) for job_id in ids}

    with monkeypatch.context() as patch:
        patch.setattr("launcher.scheduler.open_scheduler", lambda *_, **__: Silent())
        asked = job.watcher.num_calls
        until(lambda: job.done(force_check=True) or job.watcher.num_calls > asked + 1)
        assert job.watcher.get_state(job.job_id, mode="cache") == "RUNNING"
        assert "Unable to contact slurm controller" in caplog.text
    job.cancel()
    with monkeypatch.context() as patch:
        patch.setattr("launcher.scheduler.open_scheduler", lambda *_, **__: Forgetful())
        until(lambda: pickle.loads(pickle.dumps(job)).done(force_check=True))
        assert job.state == "CANCELLED"


def test_the_state_is_saved_while_it_runs_where_that_is_asked_for(executor: submitit.AutoExecutor, here: User) -> None:
    executor.update_parameters(swiftlaunch_checkpoint_minutes=0.002)
    job = executor.submit(functions.Counter(), str(here.root / "stop"))
    until(lambda: "counting" in (job.stdout() or ""))
    until(lambda: job.submission().function.value == "1")
    (here.root / "stop").touch()
    assert job.result() == [None]


def test_faults_are_all_told_and_nothing_is_submitted(executor: submitit.AutoExecutor, here: User) -> None:
    before = here.everything()
    with pytest.raises(InputError) as caught:
        SwiftlaunchExecutor("jobs").update_parameters(
            timeout_min="long", cpu=3, nodes=0, extra=["--array=1-9"], environment="train", python="/usr/bin/python3"
        )
    told = [fault.where for fault in caught.value.faults]
    assert told == ["timeout_min", "cpu", "nodes", "extra", "python"]
    executor.update_parameters(nodes=7, gpus_per_node=2, mem_gb=900.0, cpus_per_task=99, swiftlaunch_partition="gpu")
    with pytest.raises(InputError) as caught:
        executor.submit(functions.add, 1, 2)
    told = [fault.where for fault in caught.value.faults]
    assert told == ["swiftlaunch_partition", "gpus_per_node", "nodes", "cpus_per_task", "mem_gb"]
    for parameters, words in (
        ({"swiftlaunch_site": "elsewhere"}, "no site 'elsewhere'"),
        ({"swiftlaunch_site": "./here.toml", "swiftlaunch_environment": "vllm"}, "no environment 'vllm'"),
    ):
        executor.update_parameters(**parameters)
        with pytest.raises(UserError, match=words):
            executor.submit(functions.add, 1, 2)
    with pytest.raises(NameError, match="Unknown argument 'color'"):
        executor.update_parameters(swiftlaunch_color="red")
    assert here.everything() == before


def test_an_interpreter_that_cannot_is_told(executor: submitit.AutoExecutor, here: User) -> None:
    bare = here.root / "bare/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare.parent.parent)], check=True)
    executor.update_parameters(swiftlaunch_python=str(bare))
    job = executor.submit(functions.add, 1, 2)
    job._results_timeout_s = 0
    with pytest.raises(submitit.core.utils.FailedJobError, match="has no submitit"):
        job.result()


def test_submitit_chooses_as_before() -> None:
    assert submitit.AutoExecutor.which() in ("slurm", "local")


def test_the_command_line_never_imports_submitit(here: User) -> None:
    code = "import sys, launcher.cli; code = launcher.cli.run(['runs', '--json']); sys.exit('submitit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
