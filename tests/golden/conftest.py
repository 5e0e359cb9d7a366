"""`pytest tests/golden --update-golden` writes the files that the tests otherwise compare with."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/plans/ anew")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    # the option is known only where this folder is named on the command line
    return bool(request.config.getoption("--update-golden", default=False))
