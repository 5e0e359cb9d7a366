"""Compares runs of family_train.py with transformers, as one JSON list: family_exports.py PLAN... (train environment).

Of each plan the largest differences of logits: `before` (to those of transformers, without a step), `exported` (of the
exported model to those after training) and, where there is one, `adapter` (of base model and adapter, through PEFT).
`unequal` are tensors of the model exported without a step that are not, to the bit, those of the model it is of.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from launcher.plan import Plan, from_json
from launcher.work import export
from launcher.work.context import from_environment
from launcher.work.folders import ADAPTER_CONFIG, weight_files


def main(plans: list[str]) -> None:
    print(json.dumps([compared(Path(path).parent, from_json(Path(path).read_text())) for path in plans]))


def compared(run: Path, plan: Plan) -> dict[str, Any]:
    base = Path(plan.stage("train").options["model"]["path"])
    reference = load_file(base.with_suffix(".reference"))
    trained = load_file(run / "after.safetensors")["logits"]

    def difference(model: Any, wanted: Any) -> float:
        with torch.no_grad():
            return float((model.eval()(input_ids=reference["tokens"]).logits - wanted).abs().max())

    context = from_environment(plan, "export", os.environ)
    context.files.attempt("export", context.attempt).mkdir(parents=True, exist_ok=True)
    export.run(context)
    found: dict[str, Any] = {
        "before": float((load_file(run / "before.safetensors")["logits"] - reference["logits"]).abs().max()),
        "exported": difference(loaded(context.files.artifact("export")), trained),
        "learnt": float((trained - reference["logits"]).abs().max()),
    }
    adapter = context.files.artifact("train")
    if (adapter / ADAPTER_CONFIG).is_file():
        found["adapter"] = difference(PeftModel.from_pretrained(loaded(base), adapter), trained)
    if (run / "untrained").is_dir():
        before, after = whole(base), whole(run / "untrained")
        found["unequal"] = sorted(
            name
            for name in before.keys() | after.keys()
            if name not in before or name not in after or not torch.equal(before[name], after[name])
        )
    return found


def loaded(folder: Path) -> Any:
    """A model whose tensors are all there, under the names that transformers looks for."""
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"], report
    return model


def whole(folder: Path) -> dict[str, Any]:
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


if __name__ == "__main__":
    main(sys.argv[1:])
