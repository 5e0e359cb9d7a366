"""Which inference engine serves which model on which hardware: what was seen to work, as tables.

A quantization is named by the recipe's `quantize.method`, "" for a model that is not quantized.
"""

from __future__ import annotations

from collections.abc import Sequence

ENGINES = ("transformers", "vllm", "sglang")
SERVE_KEY_VARIABLE = "SWIFTLAUNCH_SERVE_TOKEN"  # variable with the API key that a server asks its clients for
GPTQ_GROUP_SIZES = (16, 32, 64, 128)  # weights per scale that GPTQModel's kernels for CPU and GPU take

_NO_4BIT = (
    "vLLM's CPU build has its 4-bit kernel for AVX512 alone, which a plan cannot promise: with AVX2 the server reports "
    "healthy and dies on the first request"
)
# (engine, quantization) -> why a CPU cannot run it, and what to choose instead. "*" is any quantization.
_NOT_ON_CPU = {
    ("sglang", "*"): (
        "SGLang's released wheels have no CPU kernels",
        'engine = "transformers", or "vllm" for fp8 and int8 models',
    ),
    ("vllm", "gptq"): (
        _NO_4BIT,
        'engine = "transformers", or quantize.method = "int8"',
    ),
    ("vllm", "awq"): (
        _NO_4BIT,
        'quantize.method = "int8" or "gptq"',
    ),
    ("transformers", "awq"): ("AWQ kernels need a GPU", 'quantize.method = "gptq" or "int8"'),
}

# (engine, quantization) -> why no hardware helps
_NOWHERE = {
    ("transformers", "fp8"): (
        "transformers unpacks compressed-tensors weights: what it serves is not the quantized model",
        'engine = "vllm", or "sglang" on GPUs',
    ),
    ("transformers", "int8"): (
        "transformers unpacks compressed-tensors weights: what it serves is not the quantized model",
        'engine = "vllm", or "sglang" on GPUs',
    ),
}


def engine_refusal(engine: str, quantization: str, gpus: int) -> str:
    """Why this engine cannot serve such a model on nodes with that many GPUs, with what to choose; "" if it can."""
    if engine not in ENGINES:
        return f"unknown engine {engine!r}; choose " + ", ".join(ENGINES)
    found = _NOWHERE.get((engine, quantization))
    if not found and not gpus:
        found = _NOT_ON_CPU.get((engine, quantization)) or _NOT_ON_CPU.get((engine, "*"))
    return f"{found[0]}; choose {found[1]}" if found else ""


def default_engine(gpus: int, quantization: str) -> str:
    """What engine = "auto" means: SGLang on GPUs; on CPUs vLLM for fp8 and int8 models, else transformers."""
    if gpus:
        return "sglang"
    return "vllm" if quantization in ("fp8", "int8") else "transformers"


def serve_role(engine: str, quantization: str) -> str:
    """The environment role in which an engine finds what it needs to load such a model."""
    return "gptq" if (engine, quantization) == ("transformers", "gptq") else engine


def quantize_role(method: str) -> str:
    """The environment role of a quantization method."""
    return "gptq" if method == "gptq" else "compressor"


def divisible_group_sizes(input_sizes: Sequence[int]) -> list[int]:
    """GPTQ group sizes that divide the input size of every layer to quantize, ascending.

    For a Llama-like model these are the hidden size, the intermediate size and heads * head size (all numbers of
    elements). A size that does not divide quantizes and saves without complaint and fails when the model is used.
    """
    return [size for size in GPTQ_GROUP_SIZES if all(total % size == 0 for total in input_sizes)]
