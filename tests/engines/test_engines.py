"""Which engine serves what where."""

from __future__ import annotations

import itertools

import pytest

from launcher.engines import (
    ENGINES,
    default_engine,
    divisible_group_sizes,
    engine_refusal,
    quantize_role,
    serve_role,
)

pytestmark = pytest.mark.unit

QUANTIZATIONS = ("", "gptq", "fp8", "int8")


@pytest.mark.parametrize(("gpus", "quantization"), list(itertools.product((0, 1, 8), QUANTIZATIONS)))
def test_the_default_engine_is_never_refused(gpus: int, quantization: str) -> None:
    assert engine_refusal(default_engine(gpus, quantization), quantization, gpus) == ""


@pytest.mark.parametrize(
    ("engine", "quantization", "gpus", "word"),
    [
        ("sglang", "", 0, "no CPU kernels"),
        ("sglang", "int8", 0, "no CPU kernels"),
        ("vllm", "gptq", 0, "dies on the first request"),
        ("vllm", "awq", 0, "dies on the first request"),
        ("transformers", "awq", 0, "need a GPU"),
        ("transformers", "fp8", 0, "not the quantized model"),
        ("transformers", "int8", 8, "not the quantized model"),
        ("triton", "", 8, "unknown engine"),
    ],
)
def test_what_is_known_to_fail_is_refused_with_a_choice(engine: str, quantization: str, gpus: int, word: str) -> None:
    refusal = engine_refusal(engine, quantization, gpus)
    assert word in refusal
    assert "; choose " in refusal


def test_what_was_seen_to_work_is_not_refused() -> None:
    for engine, quantization, gpus in (
        ("transformers", "", 0), ("transformers", "gptq", 0), ("vllm", "", 0), ("vllm", "int8", 0), ("vllm", "fp8", 0),
        ("sglang", "", 1), ("sglang", "gptq", 1), ("vllm", "gptq", 1),
    ):  # fmt: skip
        assert engine_refusal(engine, quantization, gpus) == ""


def test_roles() -> None:
    assert serve_role("transformers", "gptq") == "gptq"
    assert [serve_role(engine, "") for engine in ENGINES] == list(ENGINES)
    assert [quantize_role(method) for method in ("gptq", "fp8", "int8")] == ["gptq", "compressor", "compressor"]


def test_group_sizes_divide_every_layer() -> None:
    assert divisible_group_sizes([576, 1536]) == [16, 32, 64]
    assert divisible_group_sizes([4096, 14336]) == [16, 32, 64, 128]
    assert divisible_group_sizes([4096, 100]) == []
