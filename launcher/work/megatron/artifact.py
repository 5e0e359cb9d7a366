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
    model.bridge.save_weights(list(model.adapted), str(part), peft_format=adapted)
    if adapted and model.scores:
        _add_head(model, part)
    if dist.get_rank() == 0:
        if adapted:
            write_json(part / ADAPTER_CONFIG, _adapter_config(part / ADAPTER_WEIGHTS, train, base=base))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    dist.barrier()


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
        whole = {**load_file(str(folder / ADAPTER_WEIGHTS)), **load_file(str(handed))}
        save_file(whole, str(folder / ADAPTER_WEIGHTS), metadata={"format": "pt"})
        handed.unlink()


def _adapter_config(weights: Path, train: Mapping[str, Any], *, base: Path) -> dict[str, Any]:
    """PEFT's description of the adapter, naming the Hugging Face layers that its weights belong to."""
    from safetensors import safe_open

    with safe_open(str(weights), framework="pt") as file:
        layers = {name.split(".lora_")[0].rpartition(".")[2] for name in file.keys() if ".lora_" in name}  # noqa: SIM118
    lora = train["lora"]
    scores = train["method"] == "rm"
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scores else "CAUSAL_LM",
        "modules_to_save": ["score"] if scores else None,
        "base_model_name_or_path": str(base),
        "r": lora["rank"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora.get("dropout", 0.0),
        "use_rslora": train["tuner"] == "rslora",
        "target_modules": sorted(layers),
        "bias": "none",
        "inference_mode": True,
    }
