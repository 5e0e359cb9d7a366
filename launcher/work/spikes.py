"""Loss spikes: a loss or a gradient norm far above what was usual in the steps before."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

WINDOW = 64  # newest steps that say what is usual
LEAST = 16  # steps before which nobody knows
LOSS, NORM = "loss", "grad_norm"
_SPREAD_OF = {LOSS: 0.05, NORM: 0.5}  # the spread is at least this share of the median: smooth curves have next to none
_LEAST_SPREAD = 0.01  # of a loss: where it is next to nothing, so is what it does
_NORMAL = 1.4826  # the median deviation of a normal distribution times this is its standard deviation
_SHOWN = 20  # samples named in a message; the event has them all


@dataclass(frozen=True)
class Spike:
    """One figure of one step beside the usual one, and the limit above which it counts as a spike."""

    figure: str
    value: float
    usual: float
    limit: float

    @property
    def text(self) -> str:
        name = "loss" if self.figure == LOSS else "gradient's norm"
        return f"the {name} is {self.value:.4g} (usual {self.usual:.4g}, limit {self.limit:.4g})"


class Spikes:
    """Looks at each step's loss and gradient norm, in order; every rank has the same and comes to the same end.

    A spike is more than `factor` spreads above the median of the last WINDOW steps. The spread is the standard
    deviation that belongs to the median deviation from the median, so that neither an earlier spike nor the fall of
    the loss hides the next one; it is taken as no less than 5 % of the usual loss, or half the usual norm. A norm up to
    `clip` is none: what clipping lets pass whole does no harm. A spike that lasts is told once. Factor 0: none is.
    """

    def __init__(self, factor: float, *, clip: float = 0.0) -> None:
        self._factor, self._clip = factor, clip
        self._values: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in (LOSS, NORM)}
        self._high: set[str] = set()

    def look(self, figure: str, value: float) -> Spike | None:
        """The spike that this value is, or None; the value counts for those that follow."""
        values = self._values[figure]
        found = None
        if self._factor and len(values) >= LEAST:
            usual = statistics.median(values)
            deviation = _NORMAL * statistics.median(abs(one - usual) for one in values)
            spread = max(deviation, _SPREAD_OF[figure] * abs(usual), _LEAST_SPREAD if figure == LOSS else 0.0)
            limit = usual + self._factor * spread
            if figure == NORM:
                limit = max(limit, self._clip)
            if value > limit:
                found = Spike(figure, value, usual, limit)
        values.append(value)
        lasts = found is not None and figure in self._high
        self._high = self._high | {figure} if found else self._high - {figure}
        return None if lasts else found


def worst_first(parts: Collection[tuple[Sequence[str], float, float]]) -> list[str]:
    """The ids of micro-batches, those with the highest loss first; where a loss is no number, of these alone.

    Each part is (ids, summed loss, what it is divided by); parts with the same ids are parts of one micro-batch, as
    ranks that share sequences have them.
    """
    sums: dict[tuple[str, ...], tuple[float, float]] = {}
    for ids, loss, divisor in parts:
        before = sums.get(tuple(ids), (0.0, 0.0))
        sums[tuple(ids)] = (before[0] + loss, before[1] + divisor)
    means = {ids: loss / divisor if divisor else 0.0 for ids, (loss, divisor) in sums.items()}
    broken = [ids for ids, loss in means.items() if not math.isfinite(loss)]
    ordered = sorted(broken) or sorted(means, key=lambda ids: (-means[ids], ids))
    return list(dict.fromkeys(name for ids in ordered for name in ids))


def named(ids: Sequence[str]) -> str:
    """Samples as a message names them."""
    more = len(ids) - _SHOWN
    return ", ".join(ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
