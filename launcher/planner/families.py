"""What of a recipe does not work, or not whole, with the family of its model on Megatron-core."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.errors import Fault, InputError
from launcher.families import target_layers
from launcher.models import ModelFacts
from launcher.recipe.training import ADAPTERS, Train


def family_faults(train: Train, facts: ModelFacts) -> Iterator[Fault]:
    """Why Megatron-core cannot train this model so."""
    if facts.megatron_refusal:
        hint = 'choose another model or release (swiftlaunch models), or engine = "fsdp"'
        yield Fault("model", facts.megatron_refusal, hint)
        return
    layout = train.layout
    if train.tuner in ADAPTERS:
        try:
            layers = target_layers(train.lora.target_modules, facts.linear_layers)
        except InputError as error:
            yield from error.faults
        else:
            if facts.experts and layout.expert_tensor > 1 and {"linear_fc1", "linear_fc2"}.intersection(layers):
                hint = "use expert instead, or adapt layers of attention alone"
                yield Fault("train.layout.expert_tensor", "adapters of experts are not divided among ranks", hint)
    if facts.architecture != "gpt_oss":
        return
    # Transformer Engine has few kernels with sinks, and the biases of experts are tried undivided alone
    if layout.context > 1:
        yield Fault("train.layout.context", "attention with sinks (gpt_oss) is not divided among ranks here", "use 1")
    if train.packing:
        yield Fault("train.packing", "attention with sinks (gpt_oss) takes no packed rows here", "use packing = false")
    if layout.expert_tensor > 1:
        yield Fault("train.layout.expert_tensor", "experts with biases (gpt_oss) are not divided", "use expert instead")


def family_warnings(train: Train, facts: ModelFacts) -> Iterator[str]:
    """What is not as one may think of what training leaves."""
    mixed = facts.experts and (facts.shared_intermediate or 0 < facts.dense_layers < facts.layers)
    if mixed and train.tuner in ADAPTERS and facts.architecture != "gpt_oss":
        yield (
            "train.tuner: PEFT 0.20 with transformers 5 loads this adapter without the part of its dense and shared "
            "layers, which have the names of the experts' ones; use the exported model, which has all of it"
        )
