"""What training leaves for export: a PEFT adapter, or whole weights, in Hugging Face form."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launcher.record import write_json
from launcher.work.folders import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from launcher.work.megatron.adapters import adapted_layers
from launcher.work.megatron.forward import reports_alone
from launcher.work.megatron.model import Model

SCORE = "base_model.model.score.weight"  # as PEFT names the head of a reward model


def save_artifact(model: Model, folder: Path, train: Mapping[str, Any], *, base: Path) -> None:
    """Gather the weights of all ranks into `folder`, whole or not at all. Every rank calls it together."""
    part = folder.with_name(f".{folder.name}.part")
    if dist.get_rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    dist.barrier()
    adapted = model.adapted is not model.bare
    if adapted:
        _save_adapter(model, part, magnitudes=train["tuner"] == "dora")
    else:
        # with what transformers leaves out too, such as the layers that predict further tokens
        model.bridge.save_weights(list(model.bare), str(part), save_missing_weights=not model.scores)
    if adapted and model.scores:
        _add_head(model, part)
    if dist.get_rank() == 0:
        if adapted:
            write_json(part / ADAPTER_CONFIG, _adapter_config(part / ADAPTER_WEIGHTS, train, base=base))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    dist.barrier()


def _save_adapter(model: Model, folder: Path, *, magnitudes: bool) -> None:
    """Write the adapter by the names of the Hugging Face layers, whose parts of fused layers share one A."""
    lengths: dict[str, Any] = {}

    def without_magnitude(name: str, tensor: Any) -> tuple[str, Any]:
        if not magnitudes or ".lora_B." not in name:
            return name, tensor
        layer = name.partition(".lora_B.")[0]
        lengths[f"{layer}.lora_magnitude_vector"] = tensor[:, -1].contiguous()
        return name, tensor[:, :-1].contiguous()

    kept = []
    for chunk in model.bare:
        for _, layer in adapted_layers(chunk):
            for parameter, tensor in layer.exported():
                kept.append((parameter, parameter.data))
                parameter.data = tensor.detach()
    model.bridge.save_weights(list(model.adapted), str(folder), peft_format=True, converter=without_magnitude)
    for parameter, data in kept:
        parameter.data = data
    if lengths:  # on the rank that writes
        _add(folder, lengths)


def _add(folder: Path, tensors: Mapping[str, Any]) -> None:
    """Put further tensors into the adapter's file."""
    from safetensors.torch import load_file, save_file

    file = str(folder / ADAPTER_WEIGHTS)
    save_file({**load_file(file), **tensors}, file, metadata={"format": "pt"})


def _add_head(model: Model, folder: Path) -> None:
    """Put a reward model's head beside its adapter. The rank that holds the model's end hands it over in a file."""
    from megatron.core import parallel_state
    from safetensors.torch import load_file, save_file

    handed = folder / "score.safetensors"
    first = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    if reports_alone() and first:
        weight = model.bare[-1].output_layer.weight.detach().cpu().contiguous()
        save_file({SCORE: weight}, str(handed))
    dist.barrier()
    if dist.get_rank() == 0:
        _add(folder, load_file(str(handed)))
        handed.unlink()


def _adapter_config(weights: Path, train: Mapping[str, Any], *, base: Path) -> dict[str, Any]:
    """PEFT's description of the adapter, naming the Hugging Face layers that its weights belong to."""
    from safetensors import safe_open

    with safe_open(str(weights), framework="pt") as file:
        layers = {name.split(".lora_")[0].rpartition(".")[2] for name in file.keys() if ".lora_" in name}  # noqa: SIM118
    lora = train["lora"]
    fold = 2 if train["tuner"] == "pissa" else 1  # the factors at the start stand beside the trained ones
    scores = train["method"] == "rm"
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scores else "CAUSAL_LM",
        "modules_to_save": ["score"] if scores else None,
        "base_model_name_or_path": str(base),
        "r": fold * lora["rank"],
        "lora_alpha": fold * lora["alpha"],
        "lora_dropout": lora.get("dropout", 0.0),
        "use_rslora": train["tuner"] == "rslora",
        "use_dora": train["tuner"] == "dora",
        "target_modules": sorted(layers),
        "bias": "none",
        "inference_mode": True,
    }
