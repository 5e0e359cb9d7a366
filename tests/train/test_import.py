"""Models come in whole and go out whole: logits are transformers' after the import, and no step leaves no trace.

All layouts of a number of ranks are looked at in one process a rank; see import_checks.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import finish_together, train_python, write_run
from .equivalence import LAYOUTS, TP2_SP, Way

pytestmark = pytest.mark.layout

KINDS = ("llama", "qwen3", "moe", "glm")
# kinds of models, layout, ranks
CASES = [
    *((kind, Way(1, {})) for kind in KINDS),
    *((kind, LAYOUTS[name]) for kind in ("llama", "qwen3") for name in ("TP2", "TP2+SP", "PP2", "PP2 VPP2", "CP2")),
    *(("moe", LAYOUTS[name]) for name in ("TP2+SP", "PP2 VPP2", "CP2", "EP2", "TP2+SP EP2", "TP2+SP ETP2")),
    *(("glm", LAYOUTS[name]) for name in ("PP2", "TP2+SP EP2")),
    ("llama", LAYOUTS["TP2+SP PP2"]),
    ("moe", Way(4, {**TP2_SP, "pipeline": 2, "expert": 2})),
]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_model_passes_through_unchanged(tmp_path: Path, tiny_model: Callable[[str], Path], ranks: int) -> None:
    cases = [(kind, way.layout, "fp32") for kind, way in CASES if way.ranks == ranks]
    cases += [(kind, layout, "bf16") for kind, layout, _ in cases if kind != "qwen3"]
    models = {(kind, "fp32"): tiny_model(kind) for kind in KINDS}
    models |= {(kind, "bf16"): rounded(tiny_model(kind), tmp_path / kind) for kind in KINDS}
    runs = [
        write_run(
            tmp_path / f"run-{number}",
            models[kind, precision],
            ranks,
            {},
            {"tuner": "full", "layout": layout, "precision": precision, "global_batch_size": 2, "micro_batch_size": 1,
             "sequence_length": 32},
        )
        for number, (kind, layout, precision) in enumerate(cases)
    ]  # fmt: skip
    finish_together(runs, program="import_checks.py")
    for case, run in zip(cases, runs, strict=True):
        found = json.loads((run.files.root / "found.json").read_text())
        print(case, found)
        assert not found["unequal"], case
        assert found["difference"] < (1e-4 if case[2] == "fp32" else 1.0), case


def rounded(model: Path, folder: Path) -> Path:
    """A copy of a model in bf16, as most are published; biases of routers are fp32 there too."""
    shutil.copytree(model, folder)
    code = (
        "import sys, torch; from safetensors.torch import load_file, save_file; path = sys.argv[1]; "
        "save_file({name: tensor if name.endswith('correction_bias') else tensor.bfloat16() "
        "for name, tensor in load_file(path).items()}, path, {'format': 'pt'})"
    )
    subprocess.run([train_python(), "-c", code, str(folder / "model.safetensors")], check=True, timeout=120)
    return folder
