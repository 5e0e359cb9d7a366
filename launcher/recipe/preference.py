"""[train.preference]: settings of the methods that learn from comparisons, and what each of them reads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from launcher.recipe.fields import Section

# what a method reads, and its default; the other keys have no meaning for it
DEFAULTS: dict[str, dict[str, Any]] = {
    "dpo": {
        "beta": 0.1,
        "loss": "sigmoid",
        "label_smoothing": 0.0,
        "length_normalization": False,
        "sft_weight": 0.0,
        "reference": None,
    },
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "reference": None},
    "simpo": {"beta": 2.0, "gamma": 1.0, "label_smoothing": 0.0, "sft_weight": 0.0},
    "orpo": {"beta": 0.1, "sft_weight": 1.0},
    "cpo": {"beta": 0.1, "label_smoothing": 0.0, "sft_weight": 1.0},
    "rm": {"margin": 0.0, "center_weight": 0.0},
}
FORMATS = {method: "kto" if method == "kto" else "preference" for method in DEFAULTS}  # what data.format must be

Weight = Annotated[float, Field(ge=0, le=1000)]


class Preference(Section):
    """Settings of methods that compare answers. Defaults follow from the method; keys it does not read are refused."""

    beta: Annotated[float, Field(gt=0, le=1000)] | None = None
    """Scale of the rewards in the loss (dpo, kto, cpo 0.1; simpo 2.0); weight of the odds ratio (orpo 0.1)."""
    loss: Literal["sigmoid", "ipo"] | None = None
    """Loss of dpo: sigmoid, or the squared one of IPO, whose tau is beta."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    """Share of pairs thought to be the wrong way round (dpo, simpo, cpo): conservative DPO."""
    length_normalization: bool | None = None
    """Divide log-probabilities by the answers' lengths (dpo; simpo, orpo and ipo always do)."""
    gamma: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Margin by which the chosen answer should win (simpo 1.0)."""
    sft_weight: Weight | None = None
    """Weight of the chosen answer's loss per token beside the preference loss (cpo, orpo 1.0; dpo, simpo 0.0)."""
    desirable_weight: Weight | None = None
    """Weight of wanted answers (kto)."""
    undesirable_weight: Weight | None = None
    """Weight of unwanted answers (kto)."""
    reference: Literal["adapter-off", "frozen-copy", "precomputed"] | None = None
    """The reference (dpo, kto): the model without adapters, a frozen copy (for full), or a pass before training."""
    margin: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Difference of scores that is asked for (rm)."""
    center_weight: Weight | None = None
    """Weight of the squared sum of a pair's scores, which keeps them near 0 (rm); 0.01 is usual."""


def with_defaults(method: object, tuner: object, adapters: tuple[str, ...], values: Any) -> Any:
    """[train.preference] with the method's defaults; as it is where the method has none or the table is not one."""
    if not isinstance(method, str) or method not in DEFAULTS or not isinstance(values, dict | None):
        return values
    defaults = dict(DEFAULTS[method])
    if "reference" in defaults:
        defaults["reference"] = "adapter-off" if tuner in adapters else "frozen-copy"
    return {**defaults, **{key: value for key, value in (values or {}).items() if value is not None}}
