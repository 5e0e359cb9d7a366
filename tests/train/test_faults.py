"""What goes wrong in training ends with one clear report, and what was saved stays of use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.layout


def test_a_row_that_breaks_the_loss_is_named(new_run: Callable[..., Any]) -> None:
    settings = {"learning_rate": 1e10, "schedule": "constant", "warmup_steps": 0, "gradient_clip": 0, "steps": 50}
    run = new_run(ranks=2, layout={"pipeline": 2}, **settings)
    attempt = run.start()
    codes = attempt.wait()
    assert codes == [78, 78], attempt.text()
    assert "samples: chain_sum:7:" in attempt.text()
