"""Which job of the scheduler's is the one that was noted: ids come again, sites rewrite comments."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from launcher.plan import Plan, job_comment
from launcher.record import write_json
from launcher.rundir import RunDir
from launcher.scheduler import Job
from launcher.states import State
from launcher.watch import noted_states

pytestmark = pytest.mark.unit


class Queue:
    """A scheduler with one job."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def jobs(self, ids: Sequence[str], *, since: float | None = None) -> dict[str, Job]:
        return {job_id: self.job if job_id == self.job.job_id else Job(job_id) for job_id in ids}

    def find_all(self, comments: Sequence[str], *, since: float | None = None) -> dict[str, list[Job]]:
        return {comment: [self.job] if self.job.comment == comment else [] for comment in comments}


HOUR = 3600.0


@pytest.mark.parametrize(
    ("name", "comment", "age", "ours"),
    [
        ("chain-sum:train", "", 0.0, True),  # accounting that keeps no comments
        ("chain-sum:train", "project=42", 0.0, True),
        ("chain-sum:train", "project=42", -HOUR, True),  # requeued
        ("chain-sum:train", "project=42", HOUR, False),  # older than the run
        ("somebody's", "project=42", 0.0, False),
        ("chain-sum:export", "project=42", 0.0, False),
        ("chain-sum:train", job_comment("chain-sum-20261123-000000-ffff", "train"), -HOUR, False),  # of a later run
    ],
)
def test_which_job_is_ours(run_dir: RunDir, plan: Plan, name: str, comment: str, age: float, ours: bool) -> None:
    write_json(run_dir.jobs, {"train": ["12"]})
    job = Job("12", name=name, comment=comment, state=State.RUNNING, submitted=time.time() - age)
    found = noted_states([(plan, run_dir.root)], Queue(job))[run_dir.root]  # type: ignore[arg-type]
    assert found == ({"train": job} if ours else {})
