"""Trains a model by transformers, PEFT and torch's optimizers alone: hf_train.py PLAN[@ADAPTER]... (train environment).

Prints for each plan, as a line of JSON, losses and gradient norms of its steps. An adapter of DoRA or LoRA starts from
the one in the folder ADAPTER, whose parts of fused layers share one A, as in Megatron-core; PiSSA starts by itself.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.plan import from_json
from launcher.work.corpus import tokenise
from launcher.work.data import problems
from launcher.work.megatron.batches import Batches
from launcher.work.megatron.optimizer import learning_rate

FUSED = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}


def main(words: list[str]) -> None:
    for word in words:
        plan_file, _, adapter = word.partition("@")
        print(json.dumps(trained(from_json(Path(plan_file).read_text()).stage("train").options, adapter)))


def trained(options: dict[str, Any], adapter: str) -> dict[str, list[float]]:
    train, path = options["train"], options["model"]["path"]
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if train["tuner"] != "full":
        model = with_adapter(model, train, adapter)
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = problems(options["data"], "train")
    samples = tokenise(rows, tokenizer, method=train["method"], sequence_length=train["sequence_length"])
    batches = Batches(samples, train, padding=0, replica=0, replicas=1, context_rank=0, context_ranks=1)
    optimizers = made(model, train)
    losses, norms = [], []
    for step in range(train["steps"]):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(train, step, train["steps"])
        losses.append(backward(model, batches.of_step(step)))
        whole = [parameter for parameter in model.parameters() if parameter.requires_grad]
        norms.append(float(torch.nn.utils.clip_grad_norm_(whole, train["gradient_clip"])))
        for optimizer in optimizers:
            optimizer.step()
    return {"losses": losses, "norms": norms}


def backward(model: Any, samples: list[Any]) -> float:
    """The mean loss over the tokens that count; its gradients are left in place."""
    count = sum(sum(sample.trained[1:]) for sample in samples)
    total = 0.0
    for sample in samples:
        tokens = torch.tensor([sample.tokens])
        losses = torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:], reduction="none")
        loss = losses[torch.tensor(sample.trained[1:])].sum() / count
        loss.backward()
        total += float(loss)
    return total


def with_adapter(model: Any, train: dict[str, Any], folder: str) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    lora = train["lora"]
    if train["tuner"] == "pissa":
        names = lora["target_modules"]
        config = LoraConfig(r=lora["rank"], lora_alpha=lora["alpha"], target_modules=names, init_lora_weights="pissa")
        return get_peft_model(model, config)
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=True)
    layers = dict(adapted.named_modules())
    for name, layer in layers.items():
        stem, _, last = name.rpartition(".")
        if last in FUSED:
            layer.lora_A["default"].weight = layers[f"{stem}.{FUSED[last]}"].lora_A["default"].weight
    return adapted


def made(model: Any, train: dict[str, Any]) -> list[Any]:
    """The optimizers of the recipe's name; vectors do not decay."""
    name, rate, betas = train["optimizer"], train["learning_rate"], (train["beta1"], train["beta2"])
    matrices = {n: p for n, p in model.named_parameters() if p.requires_grad and p.ndim > 1}
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim == 1]
    hidden = [p for n, p in matrices.items() if ".layers." in n] if name == "muon" else []
    rest = [p for p in matrices.values() if not any(p is each for each in hidden)]
    groups = [{"params": rest, "weight_decay": train["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if name == "sgd":
        return [torch.optim.SGD(groups, lr=rate, momentum=betas[0])]
    if name == "lion":
        from bitsandbytes.optim import Lion32bit

        return [Lion32bit(groups, lr=rate, betas=betas)]
    if name == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return [AdamW8bit(groups, lr=rate, betas=betas)]
    others = torch.optim.AdamW(groups, lr=rate, betas=betas)
    if name != "muon":
        return [others]
    settings = {"weight_decay": train["weight_decay"], "momentum": betas[0], "adjust_lr_fn": "match_rms_adamw"}
    return [torch.optim.Muon(hidden, lr=rate, **settings), others]


if __name__ == "__main__":
    main(sys.argv[1:])
