"""Floating point operations of training, against figures that were worked out by hand or published."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from launcher.models import find_model
from launcher.work.operations import training_operations

pytestmark = pytest.mark.unit

# PaLM 540B: arXiv:2204.02311, table 1 and section 4.1; its input and output tables are one
PALM = {
    "active_parameters": 540_350_000_000,
    "vocabulary": 256_000,
    "hidden": 18_432,
    "tied_embeddings": True,
    "layers": 118,
    "heads": 48,
    "head_dim": 256,
}
LLAMA = {
    "active_parameters": 8_030_261_248,
    "vocabulary": 128_256,
    "hidden": 4096,
    "tied_embeddings": False,
    "layers": 32,
    "heads": 32,
    "head_dim": 128,
}
LLAMA_WEIGHTS = 8_030_261_248 - 128_256 * 4096  # the input table multiplies nothing


def test_the_share_that_palm_reports_comes_out() -> None:
    """238,300 tokens a second, 6144 chips of 275 TFLOP/s: 46.2 % in its section 4.1."""
    per_token = training_operations(PALM, [2048]) / 2048
    assert 238_300 * per_token / (6144 * 275e12) == pytest.approx(0.462, abs=0.0005)


def test_an_8b_model_by_hand() -> None:
    attention = 12 * 32 * 32 * 128
    assert training_operations(LLAMA, [8192]) == 6 * LLAMA_WEIGHTS * 8192 + attention * 8192**2
    assert training_operations(LLAMA, [8192]) / 8192 == 57_914_449_920


def test_short_sequences_in_one_pack_see_only_themselves() -> None:
    one, two = training_operations(LLAMA, [2000]), training_operations(LLAMA, [1000, 1000])
    assert one - two == 12 * 32 * 32 * 128 * (2000**2 - 2 * 1000**2)


def test_adapters_leave_out_the_gradient_of_the_weights() -> None:
    whole, adapters = training_operations(LLAMA, [100]), training_operations(LLAMA, [100], adapters=True)
    assert whole - adapters == 2 * LLAMA_WEIGHTS * 100


def test_a_reference_costs_a_third_and_a_reward_model_has_no_output_layer() -> None:
    trained = training_operations(LLAMA, [300, 200])
    assert training_operations(LLAMA, [300, 200], [300, 200]) == pytest.approx(trained * 4 / 3)
    scored = training_operations(LLAMA, [300, 200], scores=True)
    assert trained - scored == 6 * 128_256 * 4096 * 500


def test_of_experts_those_count_that_a_token_meets() -> None:
    facts = find_model("qwen3-30b-a3b", Path("/nowhere"), Path("/nowhere")).facts
    assert facts.experts > facts.experts_per_token
    weights = facts.active_parameters - facts.vocabulary * facts.hidden
    attention = 12 * facts.layers * facts.heads * facts.head_dim
    assert training_operations(asdict(facts), [4096]) == 6 * weights * 4096 + attention * 4096**2
