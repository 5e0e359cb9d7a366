"""Floating point operations that training needs, whatever hardware does them: what MFU counts.

PALM: Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", arXiv:2204.02311, appendix B.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def training_operations(
    facts: Mapping[str, Any],
    trained: Iterable[int],
    looked_at: Iterable[int] = (),
    *,
    adapters: bool = False,
    scores: bool = False,
) -> float:
    """Operations of one optimizer step over sequences of these lengths, in tokens.

    PALM counts 6N + 12 L H Q T for each token of a sequence of T tokens: two operations per weight forward and four
    backward, and the two products of attention, L layers with H heads of Q values each. Counted here as there: nothing
    for activations that are computed again, the whole of the attention's square although half of it is masked, and
    no padding. In a pack every sequence has its own T.

    N are the weights that a token is multiplied with: of experts those it is sent to, and of the two tables of a model
    whose output layer has its own only that one. PaLM's tables are one, so that its N is the number of parameters.
    With `adapters` the weights need no gradient of their own, which leaves 4N; the adapters themselves, about a
    hundredth of N, are not counted. With `scores` (reward models) there is no output layer. Sequences that are
    `looked_at` without a gradient, by the reference of a preference method, count a third: 2N + 4 L H Q T.

    `facts` are those of a plan's model (models.ModelFacts). MLA's values narrower than its keys count as wide.
    """
    table = facts["vocabulary"] * facts["hidden"]
    tables = (0 if facts["tied_embeddings"] else 1) + (1 if scores else 0)
    weights = facts["active_parameters"] - tables * table
    attention = facts["layers"] * facts["heads"] * facts["head_dim"]
    tokens, squares = _sums(trained)
    seen, seen_squares = _sums(looked_at)
    return float(
        (4 if adapters else 6) * weights * tokens
        + 12 * attention * squares
        + 2 * weights * seen
        + 4 * attention * seen_squares
    )


def _sums(lengths: Iterable[int]) -> tuple[int, int]:
    """Of lengths, and of their squares."""
    found = list(lengths)
    return sum(found), sum(length * length for length in found)
