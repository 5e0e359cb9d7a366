"""Which checkpoints stay, and how ranges of a tensor become boxes."""

from __future__ import annotations

import json
import math
import random
from itertools import product
from pathlib import Path

import pytest

from launcher.work.kept import outdated
from launcher.work.megatron.boxes import boxes, flat

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("last", "best", "gone"),
    [
        (2, 0, [10, 20, 30]),
        (1, 0, [10, 20, 30, 40]),
        (1, 1, [10, 20, 40]),  # 30 is the best of all
        (1, 2, [10, 40]),
        (3, 1, [10]),  # the best of those that are not among the newest
        (9, 0, []),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path: Path, last: int, best: int, gone: list[int]) -> None:
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.0), (40, 1.6), (50, 1.7)):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}/manifest.json").write_text(json.dumps({"loss": loss}))
    (tmp_path / "step-00000060").mkdir()  # without a manifest it is none
    assert [int(path.name[5:]) for path in outdated(tmp_path, last=last, best=best)] == gone


def test_a_checkpoint_of_unknown_loss_is_never_the_best(tmp_path: Path) -> None:
    for step, loss in ((1, None), (2, 9.0), (3, None)):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}/manifest.json").write_text(json.dumps({"loss": loss}))
    assert [path.name for path in outdated(tmp_path, last=1, best=1)] == ["step-00000001"]


def test_a_damaged_manifest_is_never_the_best(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}/manifest.json").write_text('{"loss": 1' if step == 1 else '{"loss": 2}')
    assert [path.name for path in outdated(tmp_path, last=1, best=1)] == ["step-00000001"]


@pytest.mark.parametrize("shape", [(7,), (1, 5), (4, 3), (3, 1, 4), (2, 3, 5)])
def test_boxes_hold_each_element_of_a_range_once_and_in_order(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    cuts = [(a, b) for a in range(size + 1) for b in range(a, size + 1)]
    for start, end in random.Random(1).sample(cuts, min(len(cuts), 200)):
        found = []
        for offset, sizes in boxes(shape, start, end):
            inside = product(*(range(at, at + length) for at, length in zip(offset, sizes, strict=True)))
            found += [flat(element, shape) for element in inside]
        assert found == list(range(start, end))
