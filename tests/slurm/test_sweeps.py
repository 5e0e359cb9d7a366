"""Sweeps on real Slurm: job arrays, corresponding tasks, the best point, single points cancelled and done again."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.record import read_json
from launcher.rundir import RunDir
from launcher.sweep import read_arrays
from tests.chain.conftest import GOOD
from tests.chain.sweeps import Sweeper
from tests.slurm.cluster import Cluster
from tests.slurm.test_cut_submissions import CutUser

pytestmark = pytest.mark.slurm

COUNTED = ("sbatch", "squeue", "sacct", "scontrol", "scancel")


@pytest.fixture
def user(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeper:
    """Calls of Slurm's commands are logged, and made."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in COUNTED:
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/calls\nexec /usr/bin/{name} "$@"\n')
        (programs / name).chmod(0o755)
    environ = {"SLURM_CONF": str(cluster.conf), "PATH": f"{programs}:/usr/bin:/bin"}
    return Sweeper(tmp_path, "slurm", monkeypatch, environ)


def calls(user: Sweeper, program: str) -> Sequence[str]:
    """The calls so far, and forget them."""
    log = user.root / "calls"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line for line in lines if line.startswith(program + " ") and "--test-only" not in line]


def test_arrays_with_a_limit_and_one_point_again(user: Sweeper, cluster: Cluster) -> None:
    files = user.submit('parameters."train.learning_rate" = [0.1, 0.5, 0.2, 0.3, 0.4]\nconcurrency = 2\n')
    (train, *_) = [job for job in read_json(files.arrays) if job["stage"] == "train"]
    assert train["tasks"] == "0-4"
    assert "ArrayTaskThrottle=2" in cluster.command("scontrol", "show", "job", train["job_id"]).stdout
    submissions = [line.partition(str(files.root))[0].split() for line in calls(user, "sbatch")]
    waits = [" ".join(word for word in words if word.startswith("--dep")) for words in submissions]
    assert len(submissions) == 5  # baseline, and an array for each of four stages
    assert [re.sub(r"\d+", "N", text) for text in waits] == ["", "", *["--dependency=aftercorr:N"] * 3]
    found = user.ended(files.root.name)
    assert found["points"]["train"] == {"COMPLETED": 4, "FAILED": 1}
    assert found["points"]["quantize"] == {"CANCELLED": 1, "COMPLETED": 4}
    assert [point["point"] for point in user.board(files.root.name)] == [0, 2, 3, 4, 1]

    calls(user, "sbatch")
    (files.points(0) / "1/mended").touch()
    assert user.run("resume", f"{files.root.name}/1").split() == ["train/1", "export/1", "evaluate/1", "quantize/1"]
    assert [word for line in calls(user, "sbatch") for word in line.split() if word.startswith("--array")] == [
        "--array=1%2"
    ] * 4
    assert user.ended(files.root.name)["state"] == "COMPLETED"
    answer = cluster.command("sacct", "-P", "-n", "-X", "-j", train["job_id"], "-o", "State").stdout
    assert sorted(answer.split()) == ["COMPLETED"] * 4 + ["FAILED"]


def test_the_best_point_goes_on(user: Sweeper) -> None:
    files = user.submit('parameters."train.learning_rate" = [0.3, 0.125, 0.2, 0.5]\nthen = "best"\n')
    found = user.ended(files.root.name)
    assert found["states"]["select"] == found["states"]["quantize"] == "COMPLETED"
    assert files.best.resolve() == (files.points(0) / "2").resolve()
    assert (files.best / "stages/quantize/artifact/made by").read_text() == "quantize 0.2"


def test_nothing_is_cancelled_for_what_slurm_would_refuse(user: Sweeper, cluster: Cluster) -> None:
    files = user.submit('parameters."train.learning_rate" = [0.5, 0.25]\nthen = "best"\n')
    user.until(files.root.name, lambda found: (found["points"]["train"] or {}) == {"FAILED": 1, "RUNNING": 1})
    (select,) = read_json(files.jobs)["select"]
    script = files.script("train.0")
    taken = script.read_text()
    script.write_text(taken.replace("#!/bin/bash\n", "#!/bin/bash\n#SBATCH --partition=gone\n"))
    calls(user, "scancel")
    (files.points(0) / "0/mended").touch()
    words = user.swiftlaunch("resume", files.root.name)
    assert words.returncode == 2
    assert "stage train.0" in words.stderr
    assert "invalid partition" in words.stderr
    assert calls(user, "scancel") == []
    script.write_text(taken)
    resumed = user.run("resume", files.root.name).split()
    assert "train/0" in resumed
    assert select in " ".join(calls(user, "scancel"))
    (files.points(0) / "1/go on").touch()
    assert user.ended(files.root.name)["state"] == "COMPLETED"


def test_one_point_is_cancelled_and_the_others_go_on(user: Sweeper) -> None:
    files = user.submit('parameters."train.learning_rate" = [0.25, 0.1]\n')
    user.until(files.root.name, lambda found: (files.points(0) / "0/logs/train/attempt-1/rank-0.log").exists())
    ids = user.run("cancel", f"{files.root.name}/0").split()
    jobs = {job["stage"]: job["job_id"] for job in read_json(files.arrays)}
    assert ids[0] == f"{jobs['train']}_0"
    found = user.ended(files.root.name)
    assert found["points"] == {
        stage: {"CANCELLED": 1, "COMPLETED": 1} for stage in ("train", "export", "evaluate", "quantize")
    }
    assert user.status(f"{files.root.name}/0")["states"]["train"] == "CANCELLED"
    (files.points(0) / "0/go on").touch()
    user.run("resume", files.root.name)
    assert user.ended(files.root.name)["state"] == "COMPLETED"


def test_points_that_ask_for_more_have_an_array_of_their_own(user: Sweeper) -> None:
    sweep = 'parameters."resources.train.memory" = ["200M", "300M"]\nparameters."train.learning_rate" = [0.1, 0.2]\n'
    files = user.submit(sweep + "concurrency = 1\n")
    arrays = [job for job in read_json(files.arrays) if job["stage"] == "train"]
    assert [(job["array"], job["tasks"]) for job in arrays] == [(0, "0-1"), (1, "0-1")]
    (second,) = [line for line in calls(user, "sbatch") if line.endswith("train.1.sh")]
    assert f"afterany:{arrays[0]['job_id']}" in second  # one point at a time, over both arrays
    assert user.ended(files.root.name)["state"] == "COMPLETED"


def test_a_thousand_points(user: Sweeper) -> None:
    sweep = 'method = "random"\nsamples = 1000\nparameters."train.learning_rate" = { min = 0.01, max = 0.1 }\n'
    files = user.submit(sweep + 'metric = "train.final_loss"\n', 'resources.train.extra=["--hold"]')
    submissions = calls(user, "sbatch")
    assert sum("train.0.sh" in line for line in submissions) == 1
    assert len(submissions) == 5
    time.sleep(1.5)  # what was submitted this moment is not asked for
    calls(user, "squeue")
    found = user.status(files.root.name)
    assert found["points"] == {stage: {"PENDING": 1000} for stage in ("train", "export", "evaluate", "quantize")}
    asked = (user.root / "calls").read_text().splitlines()
    assert [line.split()[0] for line in asked] == ["squeue", "sacct"]
    calls(user, "squeue")
    ids = user.run("cancel", files.root.name).split()
    assert len(ids) <= 5
    assert len(calls(user, "scancel")) == 1
    user.until(files.root.name, lambda found: found["points"]["train"] == {"CANCELLED": 1000})


SWEPT = (
    GOOD.replace('[serve]\nprompt = "hello"\n', "")
    + """
[sweep]
parameters."train.learning_rate" = [1e-4, 2e-4]
metric = "train.final_loss"
"""
)


def arrays_in_the_queue(user: CutUser, run_id: str) -> dict[str, list[str]]:
    """Stage and array -> its jobs that wait."""
    answer = user.cluster.command("squeue", "-h", "-r", "--states=PENDING", "-o", "%k|%i")
    found: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        comment, job_id = line.split("|")
        if f":{run_id}:" in comment:
            found.setdefault(comment.rpartition(":")[2], []).append(job_id)
    return found


def test_killed_between_the_arrays(cluster: Cluster, tmp_path: Path) -> None:
    """Submitted again, every point has one task of each stage; none is there twice, none is missing."""
    user = CutUser(tmp_path, cluster)
    user.write(SWEPT)
    submit = ("submit", "recipe.toml", "--site", "./real.toml")
    user.cut("", *submit)
    numbers = user.submissions()
    whole = {name: len(ids) for name, ids in arrays_in_the_queue(user, user.run_id()).items()}
    stages = ("train", "export", "evaluate", "quantize", "evaluate-quantized")
    assert whole == {"baseline": 1, **{f"{stage}.0": 2 for stage in stages}}
    user.run("cancel", user.run_id())
    assert arrays_in_the_queue(user, user.run_id()) == {}
    for moment in (f"before {numbers[1]}", f"after {numbers[1]}", f"after {numbers[3]}"):
        user.forget()
        user.cut(moment, *submit)
        run_id = user.run_id()
        user.run("submit", "--resume", run_id)
        queued = arrays_in_the_queue(user, run_id)
        assert {name: len(ids) for name, ids in queued.items()} == whole, moment
        assert user.run("resume", run_id) == ""
        noted = read_arrays(RunDir(user.root / "runs" / run_id))
        tasks = {f"{job.job_id}_{task}" for job in noted for task in job.tasks}
        assert tasks == {job_id for name, ids in queued.items() if "." in name for job_id in ids}
        user.run("cancel", run_id)
