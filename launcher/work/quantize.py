"""Make a smaller copy of a model: GPTQ by GPTQModel, FP8 and INT8 (weights and activations) by llm-compressor.

One process. The result is a Hugging Face folder that keeps the tokenizer and chat template of the original.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.engines import divisible_group_sizes
from launcher.errors import WorkerError
from launcher.work.context import Context
from launcher.work.data import problems, tools_of
from launcher.work.folders import fresh_beside, give_template, publish, weights_mib, weights_sha256
from launcher.work.models import cores, load_tokenizer, model_folder, quant_method, share_cores

CALIBRATION_TOKENS = 2048  # longest calibration row; the rest is cut off
BATCH_TOKENS = 8192  # calibration tokens, padding included, that go through a layer together
SMOOTHING = 0.8  # how much of the activations' outliers SmoothQuant moves into the weights, 0 to 1
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def run(context: Context) -> None:
    """Quantize `options.model` as `options.quantize` says."""
    started = time.monotonic()
    options = context.options["quantize"]
    folder = model_folder(context)
    if found := quant_method(folder):
        raise WorkerError(f"the model is quantized already ({found})", where=str(folder))
    share_cores()
    attempt = context.files.attempt(context.stage.name, context.attempt)
    attempt.mkdir(parents=True, exist_ok=True)
    os.chdir(attempt)  # both libraries write logs to the current folder
    target = context.files.artifact(context.stage.name)
    part = fresh_beside(target)
    try:
        if options["method"] == "gptq":
            gptq(context, folder, part)
        else:
            compress(context, folder, part)
        keep_tokenizer(folder, part)
        give_template(part, context.options["model"].get("chat_template", ""))
        publish(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    metrics = {
        "size_mib_before": round(weights_mib(folder), 1),
        "size_mib_after": round(weights_mib(target), 1),
        "bits": options["bits"],
        "weights_sha256": weights_sha256(target),
        "seconds": round(time.monotonic() - started, 1),
    }
    context.finish(metrics=metrics, artifacts={"model": str(target), "base": str(folder), "method": options["method"]})


def gptq(context: Context, folder: Path, target: Path) -> None:
    """GPTQ weights of `bits` bits with a scale per `group_size` inputs, saved in the gptq format."""
    # its thread pools want two workers and give a machine of two cores one
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, cores())))
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    options = context.options["quantize"]
    on_gpu = torch.cuda.is_available()
    config = QuantizeConfig(
        bits=options["bits"],
        group_size=options["group_size"],
        desc_act=False,
        offload_to_disk=False,
        device="cuda" if on_gpu else "cpu",
    )
    # fp32 on CPUs, of which few compute in bf16
    model = GPTQModel.load(str(folder), config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    check_group_size(options["group_size"], _input_sizes(model.model))
    rows = calibration_rows(context, folder)
    if not rows:
        raise WorkerError("GPTQ needs calibration rows", where="quantize.calibration_samples", hint="32 to 512")
    layers = int(model.model.config.get_text_config().num_hidden_layers)
    context.progress(0, layers, "layers")

    def layer_done(layer_idx: int, submodule_finalized: bool) -> None:
        if not submodule_finalized:
            context.progress(layer_idx + 1, layers, "layers")
            context.raise_if_stopping()

    model.layer_callback = layer_done
    longest = max(len(row["input_ids"]) for row in rows)
    model.quantize(rows, batch_size=max(1, min(len(rows), BATCH_TOKENS // longest)))
    context.raise_if_stopping()
    # what is not quantized, the embeddings above all, goes back to half precision
    for parameter in model.model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.model.config.dtype = torch.bfloat16
    model.save(str(target))


def compress(context: Context, folder: Path, target: Path) -> None:
    """FP8 or INT8 weights per channel, activations scaled per token at run time, as compressed-tensors.

    INT8 with calibration rows applies SmoothQuant first; FP8 needs none.
    """
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import AutoModelForCausalLM

    method = context.options["quantize"]["method"]
    context.progress(0, 3, "steps")
    device_map = "auto" if torch.cuda.is_available() else None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", device_map=device_map)
    context.progress(1, 3, "steps")
    context.raise_if_stopping()
    recipe: list[Any] = [
        QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC" if method == "fp8" else "W8A8", ignore=["lm_head"])
    ]
    rows = calibration_rows(context, folder) if method == "int8" else []
    if rows:
        from datasets import Dataset
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        recipe.insert(0, SmoothQuantModifier(smoothing_strength=SMOOTHING))
        oneshot(
            model=model,
            recipe=recipe,
            dataset=Dataset.from_list(rows),
            num_calibration_samples=len(rows),
            max_seq_length=CALIBRATION_TOKENS,
            pipeline="basic",
        )
    else:
        oneshot(model=model, recipe=recipe)
    context.progress(2, 3, "steps")
    context.raise_if_stopping()
    model.save_pretrained(target, save_compressed=True)
    context.progress(3, 3, "steps")


def calibration_rows(context: Context, folder: Path) -> list[dict[str, list[int]]]:
    """Training rows as the model sees them in a chat, tokenized: `input_ids` and `attention_mask`."""
    count = int(context.options["quantize"]["calibration_samples"])
    if not count:
        return []
    tokenizer = load_tokenizer(folder, context.options["model"].get("chat_template", ""))
    rows = []
    for problem in problems(context.options["data"], "train")[:count]:
        chat = tokenizer.apply_chat_template(problem.conversation, tools=tools_of(problem), tokenize=False)
        text = chat if problem.messages else problem.answer
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:CALIBRATION_TOKENS]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
    return rows


def check_group_size(group_size: int, input_sizes: Iterable[int]) -> None:
    """Raise WorkerError for a group size with which the quantized model could not be used."""
    sizes = sorted(set(input_sizes))
    if group_size == -1 or all(size % group_size == 0 for size in sizes):
        return
    possible = ", ".join(str(size) for size in divisible_group_sizes(sizes))
    raise WorkerError(
        f"group size {group_size} does not divide the input sizes of the model's layers ({', '.join(map(str, sizes))})",
        where="quantize.group_size",
        hint=f"possible: {possible or '-1'}",
    )


def keep_tokenizer(source: Path, target: Path) -> None:
    """The original's tokenizer, template and generation settings, byte for byte: libraries rewrite them on saving."""
    for name in TOKENIZER_FILES:
        (target / name).unlink(missing_ok=True)
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _input_sizes(model: Any) -> set[int]:
    """Input sizes of the layers that GPTQ quantizes: linear ones, without the head."""
    import torch

    return {
        module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")
    }
