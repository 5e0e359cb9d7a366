"""The model of this run as transformers has it, with PEFT's adapters where the recipe asks for them."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from launcher.errors import WorkerError
from launcher.work.ranks import device

# of pretraining; as in the Megatron engine nothing is dropped but by adapters
_DROPOUTS = ("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop")


def build(path: Path, train: Mapping[str, Any]) -> Any:
    """The model to train, whole on this rank unless DeepSpeed divides it while loading.

    Full training in bf16 keeps fp32 weights that are rounded for each pass. What adapters leave frozen is held in the
    number format that it computes in.
    """
    adapts = train["tuner"] != "full"
    model = load(path, train, dtype=number_format(train) if adapts else torch.float32)
    if train["method"] == "rm":
        _initialise_head(model, seed=int(train["seed"]))
    if train.get("activation_recompute", "none") == "full":
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if adapts:
        model = _adapt(model, train)
    return model


def load(path: Path, train: Mapping[str, Any], *, dtype: torch.dtype) -> Any:
    """The model of a folder; of a reward model with a head for one score. Raises WorkerError where there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(path)
    for name in _DROPOUTS:
        if getattr(config, name, 0.0):
            setattr(config, name, 0.0)
    # PyTorch's own attention keeps packed sequences apart by their positions
    settings: dict[str, Any] = {"config": config, "dtype": dtype, "attn_implementation": "sdpa"}
    if train["tuner"] == "qlora":
        settings |= {"quantization_config": _nf4(train), "device_map": {"": device()}}
    if train["method"] != "rm":
        model = AutoModelForCausalLM.from_pretrained(path, **settings)
    else:
        config.num_labels = 1
        try:
            model = AutoModelForSequenceClassification.from_pretrained(path, **settings)
        except ValueError as error:
            raise WorkerError(
                f"transformers has no sequence classification model for this one: {error}",
                where="train.method",
                hint="choose another model for a reward model",
            ) from error
    model.config.use_cache = False
    if train.get("liger") and torch.cuda.is_available():
        _use_liger(model)
    return model


def number_format(train: Mapping[str, Any]) -> torch.dtype:
    """In which forward and backward passes compute."""
    return torch.bfloat16 if train["precision"] == "bf16" else torch.float32


def frozen(path: Path, train: Mapping[str, Any]) -> Any:
    """The model as it is in its folder, without gradients: what training is compared with."""
    model = load(path, {**train, "tuner": "full"}, dtype=number_format(train))
    model.requires_grad_(False)
    return model.eval()


def _nf4(train: Mapping[str, Any]) -> Any:
    """4 bits a weight (Dettmers et al. 2023, "QLoRA", arXiv:2305.14314), stored so that engines can divide them.

    FSDP and ZeRO-3 divide floating point tensors only, so that the bits lie in words of the number format.
    """
    from transformers import BitsAndBytesConfig

    dtype = number_format(train)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=["lm_head", "score"],
    )


def _adapt(model: Any, train: Mapping[str, Any]) -> Any:
    """Put PEFT's adapters on the model's linear layers: A at random, B zero; of pissa both from the weights.

    Adapters are fp32 whatever the model is, so that small steps are not lost. Meng et al. 2024, "PiSSA",
    arXiv:2404.02948: the adapter starts as the principal part of the weights, which keep the rest.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    lora, tuner = train["lora"], train["tuner"]
    targets = tuple(lora.get("target_modules") or ("all-linear",))
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora.get("dropout", 0.0),
        use_rslora=tuner == "rslora",
        use_dora=tuner == "dora",
        target_modules="all-linear" if targets == ("all-linear",) else list(targets),
        modules_to_save=["score"] if train["method"] == "rm" else None,
        task_type=TaskType.SEQ_CLS if train["method"] == "rm" else TaskType.CAUSAL_LM,
    )
    if tuner == "qlora":
        model.requires_grad_(False)
    torch.manual_seed(int(train["seed"]))
    model.enable_input_require_grads()  # recomputation needs an input with a gradient
    return get_peft_model(model, config)


def _initialise_head(model: Any, *, seed: int) -> None:
    """Fill the row that makes a score of the last hidden state, with the values that the Megatron engine has."""
    digest = hashlib.sha256(f"{seed}:score".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    weight = model.score.weight
    values = torch.empty(1, model.config.hidden_size).normal_(0.0, model.config.initializer_range, generator=generator)
    with torch.no_grad(), _whole(weight):
        weight.copy_(values)


def _whole(weight: Any) -> Any:
    """A weight that ZeRO-3 has divided, put together for a change."""
    if not hasattr(weight, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([weight], modifier_rank=0)


def _use_liger(model: Any) -> None:
    """Liger's fused layers for GPUs in place of transformers'; the loss is the objective's own."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    _apply_liger_kernel_to_instance(model=model, fused_linear_cross_entropy=False, cross_entropy=False)
