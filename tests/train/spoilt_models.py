"""Loads a model with a tensor missing or of another shape, one after the other: spoilt_models.py FOLDER SCRATCH NAME...

Prints JSON: case -> exit code and what the load says of it, "" for nothing. In the train environment.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from launcher.errors import WorkerError
from launcher.work.megatron import process

TRAIN = {"precision": "fp32", "method": "sft", "tuner": "full", "seed": 1}


def main(folder: str, scratch: str, names: list[str]) -> None:
    process.prepare()
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    meeting = Path(tempfile.mkdtemp(dir=scratch)) / "meeting"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    spoilt = Path(scratch) / "spoilt"
    shutil.copytree(folder, spoilt)
    tensors = load_file(str(Path(folder) / "model.safetensors"))
    cases = {"whole": tensors}
    for name in names:
        cases[f"missing {name}"] = {key: value for key, value in tensors.items() if key != name}
        cases[f"short {name}"] = {**tensors, name: tensors[name][1:].contiguous()}
        if tensors[name].ndim == 2:
            cases[f"turned {name}"] = {**tensors, name: tensors[name].T.contiguous()}
    print(json.dumps({case: said(spoilt, values) for case, values in cases.items()}))


def said(folder: Path, tensors: dict[str, object]) -> str:
    from launcher.topology import Layout
    from launcher.work.megatron.model import build

    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    try:
        build(folder, TRAIN, Layout())
    except WorkerError as error:
        return f"{error.exit_code} {error}"
    return ""


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
