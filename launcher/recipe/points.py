"""The points of a sweep: which values its keys have together, drawn or combined."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any, get_args

from launcher.recipe.faults import Problem, field_type
from launcher.recipe.positions import Loc
from launcher.recipe.sections import Sweep, SweepRange

LARGEST_SWEEP = 10_000  # points; more are a slip of the pen, and no cluster takes so many jobs of one user
_DIGITS = 6  # significant digits of a draw: more say nothing and make long lines

Values = dict[str, Any]  # TOML path -> value


def too_many(sweep: Sweep) -> Iterator[Problem]:
    """Why a sweep is not even listed."""
    if sweep.method == "random":
        count = sweep.samples or 0
        at: Loc = ("sweep", "samples")
    else:
        lengths = [len(values) for values in sweep.parameters.values() if not isinstance(values, SweepRange)]
        count = math.prod(lengths) if sweep.method == "grid" else max(lengths, default=0)
        at = ("sweep", "parameters")
    if count > LARGEST_SWEEP:
        yield Problem(at, f"makes {count} points, a sweep has at most {LARGEST_SWEEP}", "sweep fewer values")


def points(sweep: Sweep) -> list[Values]:
    """The values of every point, in an order that depends on the recipe alone. Random points follow from the seed.

    Each key has a sequence of draws of its own, so that sweeping one more key leaves the others' draws as they were.
    """
    if sweep.method == "random":
        draws = {key: _draws(key, values, sweep) for key, values in sweep.parameters.items()}
        return [{key: next(draw) for key, draw in draws.items()} for _ in range(sweep.samples or 0)]
    lists = [values for values in sweep.parameters.values() if not isinstance(values, SweepRange)]
    rows = itertools.product(*lists) if sweep.method == "grid" else zip(*lists, strict=True)
    return [dict(zip(sweep.parameters, row, strict=True)) for row in rows]


def _draws(key: str, values: tuple[Any, ...] | SweepRange, sweep: Sweep) -> Iterator[Any]:
    chance = random.Random(f"{sweep.seed}:{key}")  # noqa: S311  not a secret
    if not isinstance(values, SweepRange):
        while True:
            yield chance.choice(values)
    log = values.scale == "log"
    low, high = (math.log(values.min), math.log(values.max)) if log else (values.min, values.max)
    whole = takes_whole_numbers(key, values)
    while True:
        if whole and not log:
            yield chance.randint(math.ceil(low), math.floor(high))
            continue
        drawn = chance.uniform(low, high)
        drawn = math.exp(drawn) if log else drawn
        if whole:
            yield min(max(round(drawn), math.ceil(values.min)), math.floor(values.max))
        else:
            yield min(max(float(f"{drawn:.{_DIGITS}g}"), values.min), values.max)


def takes_whole_numbers(key: str, bounds: SweepRange) -> bool:
    """Whether an interval of this key is one of whole numbers: by the key's type, else by the interval's ends."""
    annotation = field_type(tuple(key.split(".")))
    kinds = {kind for kind in _kinds(annotation) if kind in (int, float)}
    return kinds == {int} or (not kinds and bounds.min.is_integer() and bounds.max.is_integer())


def _kinds(annotation: Any) -> Iterator[Any]:
    """The plain types in an annotation: those of its parts, of the values of a Literal."""
    yield annotation
    for part in get_args(annotation):
        yield from _kinds(part) if isinstance(part, type) or get_args(part) else [type(part)]
