"""Why attempts failed, from recorded words of Slurm and of libraries."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from launcher.failures import (
    CONFIGURATION,
    CRASH,
    HANG,
    NETWORK,
    NODE,
    OUT_OF_MEMORY,
    STEP_OUT_OF_MEMORY,
    STEP_SICK_NODE,
    classify,
    first_failure,
)

pytestmark = pytest.mark.unit

# recorded from Slurm 22.05.8: the second of two ranks allocates more than --mem, memory limited by task/cgroup
OOM_STEP = """\
srun: error: node1: task 1: Out Of Memory
srun: launch/slurm: _step_signal: Terminating StepId=1.0
"""
OOM_RANK = (
    "slurmstepd-node1: error: Detected 1 oom-kill event(s) in StepId=1.0. Some of your processes may have been killed "
    "by the cgroup out-of-memory handler.\n"
)
# the wording of src/slurmd/slurmstepd of 23.11, not run here
OOM_RANK_23_11 = (
    "slurmstepd: error: Detected 1 oom_kill event in StepId=20.0. Some of the step tasks have been OOM Killed.\n"
)
# recorded: rank 1 gets a bus error; rank 3 is killed from outside; ranks 2 and 3 exit with 3
BUS_STEP = """\
srun: error: node1: task 1: Bus error (core dumped)
srun: launch/slurm: _step_signal: Terminating StepId=2.0
srun: error: node1: task 0: Terminated
srun: error: node2: task 2: Terminated
srun: error: node2: task 3: Exited with exit code 143
srun: Force Terminated StepId=2.0
"""
KILLED_STEP = """\
srun: error: node2: task 3: Killed
srun: launch/slurm: _step_signal: Terminating StepId=2.1
srun: error: node2: task 2: Terminated
srun: error: node1: tasks 0-1: Terminated
srun: Force Terminated StepId=2.1
"""
EXITED_STEP = """\
srun: error: node2: tasks 2-3: Exited with exit code 3
srun: launch/slurm: _step_signal: Terminating StepId=2.2
srun: error: node1: task 0: Exited with exit code 143
srun: error: node1: task 1: Terminated
srun: Force Terminated StepId=2.2
"""
# of src/api/step_launch.c, not seen here
LAUNCH_STEP = "srun: error: Task launch for StepId=9.0 failed on node node4: Communication connection failure\n"
PREEMPTED_STEP = """\
slurmstepd-node1: error: *** STEP 12.0 ON node1 CANCELLED AT 2026-11-23T02:22:44 DUE TO PREEMPTION ***
srun: Job step aborted: Waiting up to 7 seconds for job step to finish.
srun: forcing job termination
srun: error: node1: task 0: Terminated
"""


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class DistBackendError(RuntimeError):
    """As torch.distributed names it."""


class SafetensorError(Exception):
    """As safetensors names it, of no other class."""


class CheckpointException(BaseException):
    """As torch.distributed.checkpoint has it: the exceptions of all ranks."""

    def __init__(self, *causes: BaseException) -> None:
        super().__init__(f"CheckpointException ranks:{range(len(causes))}")
        self.failures = {rank: (cause, None) for rank, cause in enumerate(causes)}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"), OUT_OF_MEMORY),
        (RuntimeError("CUDA error: out of memory"), OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OUT_OF_MEMORY),
        (DistBackendError("NCCL error: unhandled cuda error\nCuda failure 2 'out of memory'"), OUT_OF_MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                      "tried to allocate 549755813888 bytes."), OUT_OF_MEMORY),
        (ValueError("No available memory for the cache blocks."), OUT_OF_MEMORY),
        (OSError(12, os.strerror(12)), OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), NODE),
        (RuntimeError("No CUDA GPUs are available"), NODE),
        (RuntimeError("CUDA error: no CUDA-capable device is detected"), NODE),
        (RuntimeError("Unable to determine the device handle for GPU 0000:1B:00.0: GPU is lost."), NODE),
        (DistBackendError("NCCL error: remote process exited or there was a network error"), NETWORK),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"),
         NETWORK),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), CRASH),
        (OSError(28, os.strerror(28)), CRASH),
        (CheckpointException(OSError(28, os.strerror(28)), OSError(28, os.strerror(28))), CRASH),
        (CheckpointException(KeyError("weight")), CONFIGURATION),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), CRASH),
        (RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"), CRASH),
        (RuntimeError("[enforce fail at inline_container.cc:659] . unexpected pos 64 vs 0"), CRASH),
        (RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. "), CRASH),
        (RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"), CRASH),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), CRASH),
        (SafetensorError("I/O error: Stale file handle (os error 116)"), CRASH),
        (RuntimeError("NCCL communicator was aborted on rank 3."), NETWORK),
        (ValueError("Timed out initializing process group in store based barrier on rank: 1"), NETWORK),
        (RuntimeError("Broken pipe"), NETWORK),
        (BrokenPipeError(32, os.strerror(32)), NETWORK),
        (type("ConnectionError", (OSError,), {})("('Connection aborted.', RemoteDisconnected())"), NETWORK),
        (type("ReadTimeout", (OSError,), {})("HTTPSConnectionPool(host='hub', port=443): Read timed out."), NETWORK),
        (type("ProxyError", (OSError,), {})("HTTPSConnectionPool(host='hub'): Max retries exceeded with url"), NETWORK),
        (SafetensorError("Error while deserializing header: header too small"), CONFIGURATION),
        (OSError("models/tiny does not appear to have a file named config.json"), CONFIGURATION),
        (FileNotFoundError(2, os.strerror(2)), CONFIGURATION),
        (ValueError("no GPU is lost here"), CONFIGURATION),  # a text alone does not make a fault of the node
    ],
)  # fmt: skip
def test_classes(error: BaseException, kind: str) -> None:
    assert classify(error).kind == kind


def attempt(folder: Path, step: str, ranks: dict[int, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.log").write_text(step)
    for rank, text in (ranks or {}).items():
        (folder / f"rank-{rank}.log").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("step", "logs", "kind", "rank", "node"),
    [
        (OOM_STEP, {}, OUT_OF_MEMORY, 1, "node1"),
        (KILLED_STEP, {2: OOM_RANK}, OUT_OF_MEMORY, 3, "node2"),
        (KILLED_STEP, {2: OOM_RANK_23_11}, OUT_OF_MEMORY, 3, "node2"),
        (KILLED_STEP, {}, CRASH, 3, "node2"),
        (BUS_STEP, {}, NODE, 1, "node1"),
        (EXITED_STEP, {}, CRASH, 2, "node2"),
        (LAUNCH_STEP, {}, NODE, None, "node4"),
    ],
)
def test_ranks_that_were_killed(
    tmp_path: Path, step: str, logs: dict[int, str], kind: str, rank: int | None, node: str
) -> None:
    failure = first_failure(attempt(tmp_path, step, logs), "train")
    assert failure is not None
    assert (failure.kind, failure.rank, failure.node) == (kind, rank, node)
    if kind == OUT_OF_MEMORY:
        assert failure.hint.startswith("raise resources.train.memory")


def test_ranks_that_the_scheduler_stopped_did_not_fail(tmp_path: Path) -> None:
    assert first_failure(attempt(tmp_path, PREEMPTED_STEP), "train") is None


def report(folder: Path, rank: int, kind: str, time: float, error: str) -> None:
    (folder / f"failure-{rank}.json").write_text(
        json.dumps({"rank": rank, "node": f"node{rank}", "kind": kind, "time": time, "error": error, "hint": ""})
    )


def test_those_who_lost_a_peer_do_not_hide_it(tmp_path: Path) -> None:
    """Their nodes' clocks may be early."""
    folder = attempt(tmp_path, KILLED_STEP)
    report(folder, 0, NETWORK, 1.0, "Connection closed by peer")
    found = first_failure(folder, "train")
    assert found is not None
    assert found.text == "rank 3 on node2: ended without a report: Killed"
    report(folder, 2, NODE, 5.0, "uncorrectable ECC error")
    (folder / "step.log").write_text("srun: error: node1: tasks 0,2: Exited with exit code 1\n")
    found = first_failure(folder, "train")
    assert found is not None
    assert found.text == "rank 2 on node2: uncorrectable ECC error"


def test_a_rank_that_tells_of_another_one(tmp_path: Path) -> None:
    folder = attempt(tmp_path, "srun: error: node1: task 0: Exited with exit code 1\n")
    report(folder, 0, HANG, 3.0, "no step for 600 s; rank 1 without an answer")
    words = json.loads((folder / "failure-0.json").read_text())
    (folder / "failure-0.json").write_text(json.dumps({**words, "rank": 1}))
    found = first_failure(folder, "train")
    assert found is not None
    assert (found.kind, found.rank) == (HANG, 1)


@pytest.mark.parametrize(
    ("pattern", "texts", "others"),
    [
        (STEP_OUT_OF_MEMORY, [OOM_STEP, OOM_RANK, OOM_RANK_23_11], [BUS_STEP, KILLED_STEP, LAUNCH_STEP]),
        (STEP_SICK_NODE, [BUS_STEP, LAUNCH_STEP], [OOM_STEP, OOM_RANK, KILLED_STEP, PREEMPTED_STEP]),
    ],
)
def test_patterns_mean_the_same_to_grep(pattern: str, texts: list[str], others: list[str]) -> None:
    for text in (*texts, *others):
        found = subprocess.run(["grep", "-qE", pattern], input=text, text=True).returncode == 0
        assert found is bool(re.search(pattern, text)) is (text in texts), text
