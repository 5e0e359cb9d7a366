"""A short chaos, of few faults: `make chaos` has the whole one."""

from __future__ import annotations

import pytest

from tests.chaos.__main__ import main

pytestmark = [pytest.mark.slurm, pytest.mark.e2e, pytest.mark.timeout(1200)]


def test_three_faults() -> None:
    kinds = "newest checkpoint truncated|full disk|^preemption$"
    assert main(["--seed", "3", "--faults", "3", "--seconds", "15", "--only", kinds]) == 0
