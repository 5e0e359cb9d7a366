"""Every method in every layout computes the training of one process: losses to 1e-4, gradient norms to 1e-3, each step.

Of all that can be combined this is the part for which there is time: every method in every layout on one model, and
every tuner in every layout on every model for two methods. `make equivalence` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run
from .equivalence import ALONE, LAYOUTS, METHODS, MODELS, TUNERS, Cell, difference, layouts_of, refusal, train

pytestmark = [pytest.mark.layout, pytest.mark.timeout(3600)]  # the first test of a number of ranks trains for all

CASES = [(model, layout) for model in MODELS for layout in layouts_of(model, "full") if layout != ALONE]


def cells(model: str, layout: str) -> list[Cell]:
    """What is trained here of a model in a layout."""
    chosen = set(product(TUNERS, ("sft", "dpo")))
    if model == "llama":
        chosen |= set(product(("full", "lora"), METHODS))
    possible = [(tuner, method) for tuner, method in sorted(chosen) if not refusal(model, tuner, layout)]
    return [Cell(model, tuner, method, layout) for tuner, method in possible]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Callable[..., Any]:
    """The runs of a number of ranks, trained in one process a rank when they are first asked for."""
    done: dict[int, dict[Cell, Run] | AssertionError] = {}

    def of(ranks: int) -> dict[Cell, Run]:
        if ranks not in done:
            cases = CASES if ranks > 1 else [(model, ALONE) for model in MODELS]
            wanted = [cell for case in cases if LAYOUTS[case[1]].ranks == ranks for cell in cells(*case)]
            try:
                done[ranks] = train(wanted, tmp_path_factory.mktemp("runs"), tiny_model)
            except AssertionError as error:
                done[ranks] = error
        found = done[ranks]
        if isinstance(found, AssertionError):  # not tried again for each test
            raise found
        return found

    return of


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_a_layout_computes_the_training_of_one_process(trained: Callable[..., Any], model: str, layout: str) -> None:
    alone, runs = trained(1), trained(LAYOUTS[layout].ranks)
    found = {cell: difference(runs[cell], alone[cell.alone]) for cell in cells(model, layout)}
    different = {cell: str(each) for cell, each in found.items() if not each.equal}
    assert not different, different


@pytest.mark.parametrize("model", MODELS)
def test_every_run_learns(trained: Callable[..., Any], model: str) -> None:
    for cell in cells(model, ALONE):
        losses = trained(1)[cell].losses()
        assert losses[-1] < 0.9 * losses[0], f"{cell} has to learn, or equal losses prove nothing"
