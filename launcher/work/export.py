"""The export stage: trained weights as a Hugging Face folder that any engine loads, with a model card.

An adapter is merged tensor by tensor into the base model's own files, so memory holds one file of weights, names and
number formats stay those of the base model, and no GPU is needed.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.record import read_json, write_json, write_text
from launcher.work.context import Context
from launcher.work.folders import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    fresh_beside,
    give_template,
    publish,
    weight_files,
    weights_mib,
    weights_sha256,
)

INDEX = "model.safetensors.index.json"


def run(context: Context) -> None:
    """Write the model folder beside its place, then move it there. Raises WorkerError where weights do not fit."""
    base = Path(context.options["model"]["path"])
    checkpoint = context.options.get("checkpoint", "")
    trained = _extracted(context, Path(checkpoint)) if checkpoint else context.result_of(context.options["train_stage"])
    weights = Path(trained["artifacts"]["path"])
    final = Path(context.options.get("to") or context.files.artifact(context.stage.name))
    part = fresh_beside(final)

    adapter = read_json(weights / ADAPTER_CONFIG)
    if adapter is None:
        _copy_whole(weights, part)
    else:
        _merge(base, weights, adapter, part, context)
    context.raise_if_stopping()
    for path in sorted(base.iterdir()):
        weights_too = path.name.startswith(("model", "pytorch_model")) or path.suffix == ".safetensors"
        if path.is_file() and not weights_too and not path.name.startswith(("README", ".")):
            shutil.copyfile(path, part / path.name)
    if context.options["train"]["method"] == "rm":
        _describe_scores(part)
    give_template(part, context.options["model"].get("chat_template", ""))

    metrics = {
        "size_mib": weights_mib(part),
        "parameters": sum(map(_parameters, weight_files(part))),
        "weights_sha256": weights_sha256(part),
    }
    write_text(part / "README.md", model_card(context, trained, metrics))
    publish(part, final)
    context.finish(metrics=metrics, artifacts={"path": str(final), "lineage": trained["artifacts"].get("lineage", {})})
    if checkpoint:  # its links, and what was read from it
        shutil.rmtree(checkpoint)
        shutil.rmtree(weights)


def _extracted(context: Context, checkpoint: Path) -> dict[str, Any]:
    """What training would have left at a checkpoint. Raises WorkerError for one that does not verify."""
    place = "megatron" if context.options["train"]["engine"] == "megatron" else "sharded"
    found: dict[str, Any] = importlib.import_module(f"launcher.work.{place}.extract").extract(
        context, checkpoint, context.files.stage(context.stage.name) / "trained"
    )
    return found


def _copy_whole(weights: Path, part: Path) -> None:
    for path in sorted(weights.iterdir()):
        shutil.copyfile(path, part / path.name)


def _merge(base: Path, weights: Path, adapter: Mapping[str, Any], part: Path, context: Context) -> None:
    """W + scale * B A for every adapted layer: summed in fp32, stored in the base model's number format.

    With magnitudes (DoRA, arXiv:2402.09353) each row of the sum is then given its trained length.
    """
    import torch
    from safetensors.torch import load_file, save_file

    rank = float(adapter["r"])
    scale = float(adapter["lora_alpha"]) / (rank**0.5 if adapter.get("use_rslora") else rank)
    low_rank = load_file(str(weights / ADAPTER_WEIGHTS))
    waiting = {name.rpartition(".lora_A.")[0] for name in low_rank if ".lora_A." in name}
    files = weight_files(base)
    if not files:
        raise WorkerError("no *.safetensors here", where=str(base), hint="the base model must be in safetensors form")
    head = low_rank.get("base_model.model.score.weight")  # of a reward model: in place of the language model's
    for number, path in enumerate(files):
        tensors = load_file(str(path))
        if head is not None:
            tensors.pop("lm_head.weight", None)
            if path == files[-1]:
                tensors["score.weight"] = head.to(next(iter(tensors.values())).dtype)
        for name, weight in tensors.items():
            layer = f"base_model.model.{name.removesuffix('.weight')}"
            if layer not in waiting:
                continue
            waiting.discard(layer)
            a = low_rank[f"{layer}.lora_A.weight"].to(torch.float32)
            b = low_rank[f"{layer}.lora_B.weight"].to(torch.float32)
            merged = weight.to(torch.float32) + scale * (b @ a)
            magnitude = low_rank.get(f"{layer}.lora_magnitude_vector")
            if magnitude is not None:
                merged *= (magnitude.to(torch.float32) / merged.norm(dim=1)).unsqueeze(1)
            tensors[name] = merged.to(weight.dtype).contiguous()
        save_file(tensors, str(part / path.name), metadata={"format": "pt"})
        context.progress(number + 1, len(files), "files")
        context.raise_if_stopping()
    if waiting:
        raise WorkerError(
            f"the adapter changes layers that the base model lacks: {', '.join(sorted(waiting)[:3])} ...",
            where=str(weights),
        )
    index = read_json(base / INDEX)
    if index is not None:
        if head is not None:
            index["weight_map"].pop("lm_head.weight", None)
            index["weight_map"]["score.weight"] = files[-1].name
        write_json(part / INDEX, index)


def _describe_scores(part: Path) -> None:
    """Make the folder's configuration that of a sequence classifier with one label, a reward model's form.

    transformers takes the score at the last token that is not padding, so the padding token is the one that training
    had: the tokenizer's, or its end of text.
    """
    from transformers import AutoTokenizer

    config = read_json(part / "config.json")
    tokenizer = AutoTokenizer.from_pretrained(part)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config["architectures"] = [
        name.replace("ForCausalLM", "ForSequenceClassification") for name in config.get("architectures") or ()
    ]
    config |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}, "pad_token_id": padding}
    write_json(part / "config.json", config)


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    count = 0
    for tensor in header.values():
        size = 1
        for dimension in tensor["shape"]:
            size *= dimension
        count += size
    return count


def model_card(context: Context, trained: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """README.md of the exported folder: where the weights come from."""
    plan, train, data = context.plan, context.options["train"], context.options["data"]
    model = context.options["model"]
    lineage = trained["artifacts"].get("lineage", {})
    source = data["task"] if data["source"] == "reasoning-gym" else ", ".join(data.get("train", ()))
    facts = {
        "Base model": model.get("name") or model["path"],
        "Recipe": plan.name,
        "Run": plan.run_id,
        "Method": f"{train['method']}, {train['tuner']}, {train['precision']}",
        "Data": f"{data['source']}: {source}",
        "Training rows": trained["metrics"].get("samples"),
        "Steps": trained["metrics"]["steps"],
        "Final training loss": f"{trained['metrics']['final_loss']:.4f}",
        "Parameters": metrics["parameters"],
        "SHA-256 of the weights": metrics["weights_sha256"],
        "SHA-256 of the training rows": lineage.get("data_sha256"),
        "SHA-256 of the base weights": ", ".join(
            f"{name} {digest}" for name, digest in lineage.get("base_weights", {}).items()
        ),
        "Software": ", ".join(f"{name} {version}" for name, version in lineage.get("versions", {}).items()),
        "swiftlaunch": f"{plan.version} {plan.git_sha}".strip(),
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value not in (None, ""))
    return (
        f"---\nlibrary_name: transformers\nbase_model: {json.dumps(str(facts['Base model']))}\n---\n\n"
        f"# {plan.name}\n\nTrained by swiftlaunch, run {plan.run_id}.\n\n| | |\n|---|---|\n{rows}\n"
    )
