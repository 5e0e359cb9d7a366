"""Two gloo worlds of real torch side by side under the local scheduler."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from launcher.scheduler import open_scheduler
from launcher.scheduler.base import Machine
from launcher.states import State
from tests.groups.test_local import batch_shell, exchanged
from tests.groups.together import Together, group, site, staged
from tests.train.conftest import train_python

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("nodes", [4, 1])
def test_two_gloo_worlds_exchange_tensors_and_meet_anew_after_a_stop(tmp_path: Path, nodes: int) -> None:
    """Each on two nodes of its own; and both on the one node of a workstation, two ranks each."""
    machine = Machine(nodes=nodes, cpus=16, memory_mib=16000)
    scheduler = open_scheduler("local", state_dir=tmp_path / "state", machine=machine)
    size = {"nodes": 2, "tasks_per_node": 1} if nodes == 4 else {"nodes": 1, "tasks_per_node": 2}
    groups = [group(name, torch=True, python=train_python(), **size) for name in ("train", "sample")]
    stage = staged(groups, site("local", nodes=nodes, gpus=0))
    run = Together(tmp_path / "a run", scheduler, stage, {"train.1.1": "wait"}, 0.3)
    run.until(lambda: exchanged(run), 120)
    os.kill(batch_shell(run), signal.SIGUSR2)
    assert run.ended("rl").state is State.COMPLETED
    assert run.metrics == {"total": 13.0, "ranks": 2.0, "answers": [[6.0, 2.0], [7.0, 2.0]], "start": 1}
    assert len(run.began("train", 2)) == len(run.began("sample", 2)) == 2
    assert not run.files.crashed("rl", 1).exists()
    folders = [run.files.rendezvous("rl", attempt) for attempt in (1, 2)]
    tokens = [{json.loads(path.read_text())["token"] for path in folder.iterdir()} for folder in folders]
    assert not tokens[0] & tokens[1]
