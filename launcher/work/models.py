"""The model that a stage works on: which folder it is, and loading it for inference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.record import read_json
from launcher.work.context import Context


def model_folder(context: Context) -> Path:
    """The Hugging Face folder of `options.model`: a path, or the artifact of an earlier stage.

    Raises WorkerError if it is not a model folder.
    """
    model = context.options["model"]
    stage = model.get("artifact_of")
    folder = context.files.artifact(stage) if stage else Path(model["path"])
    if not (folder / "config.json").is_file():
        raise WorkerError(
            "not a Hugging Face model folder (no config.json)",
            where=str(folder),
            hint=f"see the logs of stage {stage}"
            if stage
            else "give a folder with config.json and safetensors weights",
        )
    return folder


def quant_method(folder: Path) -> str:
    """How a model folder says that it is quantized: "gptq", "compressed-tensors", ...; "" if it is not."""
    config = read_json(folder / "config.json")
    return str((config.get("quantization_config") or {}).get("quant_method", ""))


def cores() -> int:
    """CPU cores that the scheduler gave this task."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))


def share_cores() -> None:
    """Use the cores that were given, and sleep instead of spin while waiting for one. Call it before torch is imported.

    OpenMP threads that spin on a core which another process wants made one request 30 times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def load_tokenizer(folder: Path, chat_template: str = "") -> Any:
    """The folder's tokenizer, padding on the left as generation needs, with another chat template if one is given.

    Raises WorkerError without a chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    if not tokenizer.chat_template:
        raise WorkerError(
            "the model has no chat template",
            where=str(folder),
            hint="use an instruct model, or give model.chat_template",
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def training_tokenizer(model: Mapping[str, Any]) -> Any:
    """The tokenizer of `options.model`, with the chat template that the recipe gives instead of its own."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model["path"])
    if model.get("chat_template"):
        tokenizer.chat_template = model["chat_template"]
    return tokenizer


def load_for_inference(folder: Path) -> Any:
    """The model in evaluation mode, on the GPUs where there are some."""
    import torch
    from transformers import AutoModelForCausalLM

    if torch.cuda.is_available():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map="auto").eval()
    # fp32 on CPUs: few of them compute in bf16, and so the figures are the same on all of them.
    # A GPTQ model keeps its own dtype: the int4 kernel computes in bf16 whatever it is given.
    dtype = "auto" if quant_method(folder) == "gptq" else torch.float32
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
