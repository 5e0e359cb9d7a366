"""Rules of preference methods that span several keys."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.recipe.faults import Problem
from launcher.recipe.preference import DEFAULTS, FORMATS, Preference
from launcher.recipe.sections import Data

_WHY_NOT = {
    "reference": "has no reference model",
    "gamma": "has no target margin",
    "desirable_weight": "compares two answers and does not weight verdicts",
    "undesirable_weight": "compares two answers and does not weight verdicts",
    "margin": "compares log-probabilities, not scores",
    "center_weight": "compares log-probabilities, not scores",
}


def preference_rules(method: str, preference: Preference | None, *, adapts: bool) -> Iterator[Problem]:
    """What does not go together."""
    at = ("train", "preference")
    if preference is None:
        return
    if method not in DEFAULTS:
        yield Problem(at, f'has no meaning with method = "{method}"', "remove it, or choose another method")
        return
    for key in preference.model_fields_set - DEFAULTS[method].keys():
        if getattr(preference, key) is not None:
            yield Problem((*at, key), f"is not read by {method}: it {_WHY_NOT.get(key, _read_by(key))}", "remove it")
    if preference.loss == "ipo":
        for key in ("label_smoothing", "length_normalization"):
            if getattr(preference, key):
                yield Problem((*at, key), 'has no meaning with loss = "ipo"', "remove it")
    if preference.reference == "adapter-off" and not adapts:
        yield Problem(
            (*at, "reference"), "there is no adapter to switch off", 'write "frozen-copy" or "precomputed", or tune one'
        )
    if preference.reference == "frozen-copy" and adapts:
        yield Problem(
            (*at, "reference"),
            "a copy costs memory for what the model without its adapter is already",
            'write "adapter-off"',
        )
    if preference.desirable_weight == preference.undesirable_weight == 0:
        yield Problem((*at, "desirable_weight"), "is 0, and so is undesirable_weight: nothing would be learnt")


def _read_by(key: str) -> str:
    return "is for " + ", ".join(method for method, keys in DEFAULTS.items() if key in keys)


def data_rules(method: str, data: Data) -> Iterator[Problem]:
    """Rows must be of the kind that the method learns from."""
    wanted = FORMATS.get(method)
    if wanted is None:
        if data.format in FORMATS.values():
            hint = "choose a preference method, or another format"
            yield Problem(("data", "format"), f'"{data.format}" has no meaning with method = "{method}"', hint)
    elif data.source != "files":
        what = "verdicts" if wanted == "kto" else "pairs of answers"
        yield Problem(
            ("data", "source"), f"{method} learns from {what}, which {data.source} does not make", 'use "files"'
        )
    elif data.format not in ("auto", wanted):
        yield Problem(("data", "format"), f'{method} needs rows of the format "{wanted}"', f'write "{wanted}"')
