from __future__ import annotations

import pytest

from launcher.states import State, from_slurm

pytestmark = pytest.mark.unit

# JOB STATE CODES of squeue(1), release 26.05, long names
SLURM_STATES = """
BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE EXPEDITING FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY
PENDING POWER_UP_NODE PREEMPTED RECONFIG_FAIL RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED
SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT
"""


@pytest.mark.parametrize("text", SLURM_STATES.split())
def test_every_state_of_slurm_is_known(text: str) -> None:
    assert from_slurm(text) is not State.UNKNOWN


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("CANCELLED by 1000", State.CANCELLED),
        ("OUT_OF_ME+", State.OUT_OF_MEMORY),
        ("CANCELLED+", State.CANCELLED),
        ("NODE_FAIL", State.NODE_FAIL),
        ("completed", State.COMPLETED),
        ("CD", State.COMPLETED),
        ("", State.UNKNOWN),
        ("   ", State.UNKNOWN),
        ("TELEPORTED", State.UNKNOWN),
        ("RE+", State.UNKNOWN),  # REQUEUED, REVOKED, RESIZING ...: more than one meaning
    ],
)
def test_from_slurm(text: str, state: State) -> None:
    assert from_slurm(text) is state


def test_unknown_is_not_finished() -> None:
    assert not State.UNKNOWN.terminal
    assert not State.REQUEUED.terminal
    assert not State.NOT_SUBMITTED.terminal


def test_only_completed_succeeded() -> None:
    assert [state for state in State if state.succeeded] == [State.COMPLETED]
    assert State.COMPLETED.terminal
