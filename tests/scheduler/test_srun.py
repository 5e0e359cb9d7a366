"""srun and scontrol of the local scheduler, in real jobs."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest

from launcher.scheduler.base import Machine
from launcher.scheduler.local import tree
from launcher.scheduler.local.client import LocalScheduler
from launcher.scheduler.local.placement import gpus_wanted, options, place, share_gpus
from launcher.states import State

from .conftest import Desk, until

pytestmark = pytest.mark.unit

FOUR = ("--nodes=2", "--ntasks-per-node=2")


def test_every_task_knows_its_place(desk: Desk) -> None:
    body = """
srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --cpus-per-task=1 --kill-on-bad-exit=1 --output=out-%t-%n-%j-%s-%%.txt \
  bash -c '
    echo $SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID $SLURMD_NODENAME $SLURM_NTASKS $SLURM_STEP_ID "$@"
  ' - 'a b' '*'
srun -N1 -n1 -w local2 -o second.txt env"""
    job_id = desk.submit(f"cd {desk.folder}\n{body}", *FOUR)
    assert desk.end(job_id).state is State.COMPLETED, desk.log(job_id)
    places = ["0 0 0 local1", "1 1 0 local1", "2 0 1 local2", "3 1 1 local2"]
    for rank, expected in enumerate(places):
        text = (desk.folder / f"out-{rank}-{rank // 2}-{job_id}-0-%.txt").read_text()
        assert text == f"{expected} 4 0 a b *\n"
    values = dict(line.split("=", 1) for line in (desk.folder / "second.txt").read_text().splitlines() if "=" in line)
    assert (values["SLURM_STEP_ID"], values["SLURMD_NODENAME"], values["SLURM_NTASKS"]) == ("1", "local2", "1")
    assert values["SLURM_JOB_ID"] == job_id


def test_labels(desk: Desk) -> None:
    job_id = desk.submit("srun --label bash -c 'echo out; echo err >&2; printf tail'", *FOUR)
    assert desk.end(job_id).state is State.COMPLETED
    expected = [f"{rank}: {word}" for rank in range(4) for word in ("err", "out", "tail")]
    # the last line of each task has no end of line, as the task wrote it
    assert sorted(desk.log(job_id).split("\n")[:-1]) == sorted(expected)


def test_a_failing_rank_ends_the_others(desk: Desk) -> None:
    """TERM first, KILL for those that do not listen; the exit code is that of the rank that failed."""
    task = """case $SLURM_PROCID in
  0) trap "" TERM; : >ready-0; sleep 600;;
  1) trap "echo told; exit 5" TERM; : >ready-1; while :; do sleep 0.02; done;;
  2) while [ ! -e ready-0 ] || [ ! -e ready-1 ]; do sleep 0.02; done; exit 75;;
  3) sleep 600;;
esac"""
    job_id = desk.submit(f"cd {desk.folder}; srun --kill-on-bad-exit=1 bash -c '{task}'; echo code $?", *FOUR)
    assert desk.end(job_id).state is State.COMPLETED
    assert "code 75" in desk.log(job_id)
    assert "told" in desk.log(job_id)
    assert not desk.processes(job_id)


def test_a_killed_rank_is_137(desk: Desk) -> None:
    job_id = desk.submit(
        "srun --kill-on-bad-exit=1 bash -c '[ $SLURM_PROCID = 1 ] && kill -9 $$; exec sleep 600'; exit $?", *FOUR
    )
    job = desk.end(job_id)
    assert (job.state, job.exit_code) == (State.FAILED, 137)


def test_without_kill_on_bad_exit_the_others_go_on(desk: Desk) -> None:
    body = "srun bash -c '[ $SLURM_PROCID = 1 ] && exit 4; sleep 0.3; echo went on'; echo code $?"
    job_id = desk.submit(body, *FOUR)
    desk.end(job_id)
    assert desk.log(job_id).count("went on") == 3
    assert "code 4" in desk.log(job_id)


def test_signals_reach_the_tasks_not_their_helpers(desk: Desk) -> None:
    """A rank's data loader or checkpoint writer must not die of the USR2 that asks the rank to save."""
    body = """
trap 'kill -s USR2 $step' USR2
srun --nodes=1 --ntasks=1 bash -c '
  sleep 600 &
  trap "sleep 0.1; jobs -r | grep -q 600 && echo helper lives; exit 75" USR2
  echo up; while :; do sleep 0.02; done' &
step=$!
wait $step; wait $step; echo code $?"""
    job_id = desk.submit(body)
    desk.wait_for(job_id, "up")
    batch = next(
        pid
        for pid in desk.processes(job_id)
        if (state := tree.stat(pid)) and state[1] == int(desk.stepd(job_id).split()[0])
    )
    tree.kill(batch, signal.SIGUSR2)
    assert desk.end(job_id).state is State.COMPLETED
    assert "helper lives" in desk.log(job_id)
    assert "code 75" in desk.log(job_id)


def test_tasks_do_not_outlive_a_killed_srun(desk: Desk) -> None:
    """Nor what they started, while the batch script goes on."""
    body = "srun bash -c 'setsid sleep 600 & echo up; sleep 600' & kid=$!; wait $kid; echo srun $?; sleep 600"
    job_id = desk.submit(body, *FOUR)
    until(lambda: desk.log(job_id).count("up") == 4, "the tasks")
    srun = next(iter(desk.state_dir.glob(f"jobs/{job_id}/run-0/steps/0"))).read_text()
    inside = tree.descendants(int(srun.split()[0]))
    assert len(inside) >= 8
    assert tree.send(srun, signal.SIGKILL)
    desk.wait_for(job_id, "srun 137")
    until(lambda: not [pid for pid in inside if (state := tree.stat(pid)) and state[0] not in "ZX"], "their end")
    assert desk.job(job_id).state is State.RUNNING
    desk.scheduler.cancel([job_id])


def test_what_a_step_leaves_behind_ends_with_it(desk: Desk) -> None:
    job_id = desk.submit("srun --ntasks=1 bash -c 'setsid sleep 600 & true'; echo done; sleep 600")
    desk.wait_for(job_id, "done")
    until(lambda: len(desk.processes(job_id)) == 2, "only the batch shell and its sleep to be left")
    desk.scheduler.cancel([job_id])


def test_mistakes_are_told(desk: Desk) -> None:
    body = """
srun --no-such-option=1 true; echo one $?
srun --nodes=3 true; echo two $?
srun ./missing-program; echo three $?
scontrol requeue 99999; echo four $?
scontrol reboot; echo five $?
scontrol show hostnames 'a[08-10],b'"""
    job_id = desk.submit(body)
    assert desk.end(job_id).state is State.COMPLETED
    log = desk.log(job_id)
    for line in ("one 1", "two 1", "three 2", "four 1", "five 1", "a08\na09\na10\nb\n"):
        assert line in log
    assert "'--no-such-option=1' is not known" in log
    assert "the job has 1 nodes" in log


def test_a_step_starts_quickly(desk: Desk) -> None:
    job_id = desk.submit("for i in 1 2 3 4 5 6 7 8; do srun true; done; scontrol show hostnames")
    started = time.monotonic()
    desk.end(job_id)
    assert time.monotonic() - started < 15  # 8 steps; one takes some 40 ms on a quiet machine


@pytest.mark.parametrize(
    ("words", "given", "command"),
    [
        ("-N2 -n 4 -c1 -l prog -x", {"nodes": "2", "ntasks": "4", "cpus-per-task": "1", "label": "1"}, ["prog", "-x"]),
        ("-K --output a b", {"kill-on-bad-exit": "1", "output": "a"}, ["b"]),
        ("--kill-on-bad-exit=0 --exact -- -odd", {"kill-on-bad-exit": "0", "exact": "1"}, ["-odd"]),
        ("-K1 prog", {"kill-on-bad-exit": "1"}, ["prog"]),
    ],
)
def test_options(words: str, given: dict[str, str], command: list[str]) -> None:
    assert options(words.split()) == (given, command)


@pytest.mark.parametrize("words", ["", "-n", "--nodes", "--bogus x", "-N2"])
def test_broken_options(words: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        options(words.split())


def _nodes(count: int, gpus: int = 0) -> list[dict[str, object]]:
    return [{"name": f"n{node}", "gpus": list(range(node * gpus, (node + 1) * gpus))} for node in range(count)]


def test_placement() -> None:
    job = {"SLURM_NTASKS": "6", "SLURM_NTASKS_PER_NODE": "3"}

    def counts(**given: str) -> list[int]:
        return [len(tasks) for tasks in place({k.replace("_", "-"): v for k, v in given.items()}, _nodes(2, 3), job)]

    assert counts() == [3, 3]
    assert counts(ntasks="3") == [2, 1]
    assert counts(nodes="1") == [3]
    assert counts(ntasks="1") == [1]
    assert counts(ntasks_per_node="1") == [1, 1]
    dealt = place({"gpus-per-task": "1"}, _nodes(2, 3), job)
    assert [task["gpus"] for tasks in dealt for task in tasks] == [[0], [1], [2], [3], [4], [5]]
    (second,) = place({"relative": "1", "nodes": "1", "ntasks": "2"}, _nodes(2, 3), job)
    assert [task["node"] for task in second] == ["n1", "n1"]
    with pytest.raises(ValueError, match="--nodes=2 after the first 1: the job has 2 nodes"):
        counts(relative="1", nodes="2")
    with pytest.raises(ValueError, match="do not fit"):
        counts(ntasks="5", ntasks_per_node="2")
    with pytest.raises(ValueError, match="not all of these nodes"):
        counts(nodelist="n7")


def test_gpus_of_steps() -> None:
    """A step that says how many GPUs it wants has them for itself; one that does not shares the job's."""
    assert [gpus_wanted(given) for given in ({}, {"gres": "none"}, {"gpus-per-node": "0"})] == [None, 0, 0]
    assert [gpus_wanted({"gres": text}) for text in ("gpu", "gpu:3", "gpu:a100:2")] == [1, 3, 2]
    with pytest.raises(ValueError, match="not a number of GPUs"):
        gpus_wanted({"gpus-per-node": "all"})
    shared = share_gpus(_nodes(2, 3), 2, {0})
    assert shared
    assert [node["gpus"] for node in shared] == [[1, 2], [3, 4]]
    assert share_gpus(_nodes(2, 3), 2, {0, 4, 5}) is None
    with pytest.raises(ValueError, match="4 GPUs on n0: the job has 3 there"):
        share_gpus(_nodes(2, 3), 4, set())


def test_a_step_waits_for_gpus_of_another(desk: Desk) -> None:
    machine = Machine(nodes=1, cpus=2, memory_mib=1024, gpus=2)
    desk = replace(desk, scheduler=LocalScheduler(desk.state_dir, machine=machine))
    show = "bash -c 'echo $SLURM_STEP_ID:$CUDA_VISIBLE_DEVICES; sleep 0.5'"
    body = f"for step in 1 2 3; do srun --ntasks=1 --gpus-per-node=1 {show} & done; wait"
    job_id = desk.submit(body, "--gpus-per-node=2", "--cpus-per-task=2")
    assert desk.end(job_id).state is State.COMPLETED
    told = dict(line.split(":") for line in desk.log(job_id).split())
    assert len(told) == 3
    assert set(told.values()) == {"0", "1"}
