from __future__ import annotations

import pytest

from launcher.errors import Fault, InputError, SchedulerError, SwiftlaunchError, UserError, WorkerError

pytestmark = pytest.mark.unit


def test_all_faults_are_told_in_one_go() -> None:
    error = InputError([Fault("train.steps", "0 is not a count", "use 1 or more"), Fault("", "no model")])
    assert str(error) == "train.steps: 0 is not a count\n  hint: use 1 or more\nno model"
    assert error.faults[1] == Fault("", "no model", "")
    assert error.exit_code == 2


def test_an_input_error_has_a_fault() -> None:
    with pytest.raises(ValueError, match="at least one fault"):
        InputError([])


def test_exit_codes() -> None:
    assert [kind("x").exit_code for kind in (SwiftlaunchError, UserError, SchedulerError, WorkerError)] == [1, 2, 1, 78]


def test_one_fault_with_a_place_and_a_hint() -> None:
    error = UserError("no such run", where="RUN", hint="swiftlaunch runs")
    assert error.faults == (Fault("RUN", "no such run", "swiftlaunch runs"),)
