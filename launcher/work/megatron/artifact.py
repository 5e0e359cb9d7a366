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
from launcher.work.megatron.model import Model


def save_artifact(model: Model, folder: Path, train: Mapping[str, Any], *, base: Path) -> None:
    """Gather the weights of all ranks into `folder`, whole or not at all. Every rank calls it together."""
    part = folder.with_name(f".{folder.name}.part")
    if dist.get_rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    dist.barrier()
    adapted = model.adapted is not model.bare
    model.bridge.save_weights(list(model.adapted), str(part), peft_format=adapted)
    if dist.get_rank() == 0:
        if adapted:
            write_json(part / ADAPTER_CONFIG, _adapter_config(part / ADAPTER_WEIGHTS, train, base=base))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    dist.barrier()


def _adapter_config(weights: Path, train: Mapping[str, Any], *, base: Path) -> dict[str, Any]:
    """PEFT's description of the adapter, naming the Hugging Face layers that its weights belong to."""
    from safetensors import safe_open

    with safe_open(str(weights), framework="pt") as file:
        layers = {name.split(".lora_")[0].rpartition(".")[2] for name in file.keys()}  # noqa: SIM118
    lora = train["lora"]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora["rank"],
        "lora_alpha": lora["alpha"],
        "lora_dropout": lora.get("dropout", 0.0),
        "use_rslora": train["tuner"] == "rslora",
        "target_modules": sorted(layers),
        "bias": "none",
        "inference_mode": True,
    }
