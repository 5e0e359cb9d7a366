"""What training leaves for export: a PEFT adapter, or whole weights, in the form of all engines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from launcher.work.folders import ADAPTER_WEIGHTS
from launcher.work.sharded import pissa
from launcher.work.sharded.engines import Engine
from launcher.work.sharded.model import number_format


def save_artifact(engine: Engine, model: Any, folder: Path, train: Mapping[str, Any], *, base: Path) -> None:
    """Gather the weights of all ranks into `folder`, whole or not at all. Every rank calls it together."""
    weights = engine.weights()
    if dist.get_rank() == 0:
        write_artifact(model, weights, folder, train, base=base)
    dist.barrier()


def write_artifact(
    model: Any, weights: Mapping[str, Any], folder: Path, train: Mapping[str, Any], *, base: Path
) -> None:
    """Write what was trained, whole and by the model's names, to `folder`. One rank calls it."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    if train["tuner"] == "full":
        _save_whole(model, weights, part, train)
    else:
        _save_adapter(model, weights, part, train, base=base)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def _save_whole(model: Any, weights: Mapping[str, Any], part: Path, train: Mapping[str, Any]) -> None:
    found = {name: weight.to(number_format(train)) for name, weight in weights.items()}
    model.config.dtype = number_format(train)
    model.save_pretrained(part, state_dict=found)


def _save_adapter(model: Any, weights: Mapping[str, Any], part: Path, train: Mapping[str, Any], *, base: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    found = get_peft_model_state_dict(model, state_dict=dict(weights), save_embedding_layers=False)
    config = model.peft_config["default"]
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.init_lora_weights = True
    if train["tuner"] == "pissa":
        found = pissa.against_the_base(found, pissa.start_of(model))
        config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha
    save_file({name: weight.contiguous() for name, weight in found.items()}, str(part / ADAPTER_WEIGHTS))
    config.save_pretrained(part)
