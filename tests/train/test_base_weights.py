"""A base model with a tensor that is missing or of another shape ends with one report that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import told_by

pytestmark = pytest.mark.layout

NAMES = {
    "llama": [
        "model.embed_tokens.weight",
        "model.layers.2.input_layernorm.weight",
        "model.layers.2.mlp.down_proj.weight",
        "model.layers.2.self_attn.k_proj.weight",
        "model.norm.weight",
    ],
    "moe": ["lm_head.weight", "model.layers.2.mlp.experts.3.up_proj.weight", "model.layers.2.self_attn.q_norm.weight"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_tensor_that_is_missing_or_misshapen_is_named(
    tiny_model: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    found = told_by("spoilt_models.py", tiny_model(kind), tmp_path, *NAMES[kind])
    assert found.pop("whole") == ""
    for case, said in found.items():
        what, name = case.split()
        assert said.startswith("78 "), (case, said)
        assert name in said, (case, said)
        assert ("missing" if what == "missing" else "of another shape") in said, (case, said)
