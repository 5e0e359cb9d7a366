"""[train]: engine, method, tuner, batch, schedule, optimizer, layout, checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from launcher.recipe.fields import Count, CountOrZero, ModuleName, Section, Seed
from launcher.recipe.preference import Preference, with_defaults

Engine = Literal["megatron", "deepspeed", "fsdp"]
Method = Literal["cpt", "sft", "dpo", "kto", "simpo", "orpo", "cpo", "rm", "grpo"]
Tuner = Literal["full", "lora", "rslora", "dora", "pissa", "qlora"]
Optimizer = Literal["adamw", "adam", "sgd", "lion", "muon", "adamw_8bit", "galore_adamw", "apollo_adamw"]
MOMENTA = {"lion": {"beta2": 0.99}, "muon": {"beta1": 0.95}}  # as their authors have them
SHARDED = ("deepspeed", "fsdp")  # engines that divide transformers' models; each has a table of its name
ADAPTERS = ("lora", "rslora", "dora", "pissa", "qlora")  # the tuners that read [train.lora]


class Lora(Section):
    """Low-rank adapters, for the tuners lora, rslora, dora, pissa and qlora."""

    rank: Annotated[int, Field(ge=1, le=65536)] = 16
    """Rank of the adapter matrices."""
    alpha: Annotated[int, Field(ge=1, le=65536)] = 32
    """Scale: the adapter's output is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs dropped while training."""
    target_modules: Annotated[tuple[ModuleName, ...], Field(strict=False, min_length=1)] = ("all-linear",)
    """Layers that get an adapter; "all-linear" is every linear layer of attention and MLP."""


class TrainLayout(Section):
    """Sizes of the parallel groups; data parallel follows from the number of ranks."""

    tensor: Count = 1
    """Ranks that share each matrix (TP)."""
    pipeline: Count = 1
    """Ranks that share the layers (PP)."""
    virtual_pipeline: Count = 1
    """Pieces of the model per pipeline rank (interleaved schedule)."""
    context: Count = 1
    """Ranks that share each sequence (CP)."""
    expert: Count = 1
    """Ranks that share the experts of a mixture-of-experts model (EP)."""
    expert_tensor: Count = 1
    """Ranks that share each expert's matrices (ETP)."""
    sequence_parallel: bool = False
    """Split activations along the sequence among the tensor parallel ranks."""


class Checkpoint(Section):
    """What is saved while training; a run that is stopped goes on from the newest checkpoint."""

    every_steps: Count = 100
    """Save after this many optimizer steps; a stop and the end save too."""
    keep_last: Count = 2
    """Checkpoints to keep; older ones are deleted after a newer one is complete."""
    keep_best: CountOrZero = 0
    """Checkpoints to keep besides, those with the lowest validation loss; without [train.validation] those with the
    lowest mean training loss over the steps since the one before."""
    asynchronous: bool = True
    """Write beside training, from a copy in host memory; training stands only while the copy is made."""
    save_optimizer: bool = True
    """Save optimizer state too; without it a resumed run starts its optimizer afresh."""


class Validation(Section):
    """The loss of rows that are not trained on, while training; of pairs of answers their accuracy and rewards too."""

    every_steps: Count
    """Look after this many optimizer steps; after the last one too."""
    limit: Count = 512
    """The first so many rows of the evaluation data, of which whole global batches are looked at."""


class DeepSpeed(Section):
    """Settings of the engine deepspeed (ZeRO)."""

    stage: Literal[2, 3] = 2
    """What is divided among ranks: optimizer states and gradients (2), or weights too (3)."""
    offload: Literal["none", "cpu"] = "none"
    """cpu holds optimizer states, and with stage 3 weights, in the nodes' memory."""


class Fsdp(Section):
    """Settings of the engine fsdp (FSDP2), which divides weights, gradients and optimizer states."""

    offload: Literal["none", "cpu"] = "none"
    """cpu holds what a rank has of them in the node's memory."""


class Train(Section):
    """Training. Give steps or epochs, not both."""

    engine: Engine = "megatron"
    """Training engine: megatron for every layout; deepspeed or fsdp for few GPUs, with transformers' own models."""
    method: Method = "sft"
    """What is learnt: cpt texts; sft answers; dpo, simpo, orpo, cpo pairs of answers; kto verdicts; rm scores."""
    tuner: Tuner = "full"
    """Which weights are trained: all of them (full) or adapters."""
    precision: Literal["fp32", "bf16", "fp8"] = "bf16"
    """Number format of weights and activations; fp8 is bf16 with matrix products in fp8 (megatron on newer GPUs)."""
    steps: Count | None = None
    """Optimizer steps."""
    epochs: Count | None = None
    """Passes over the training data, instead of steps; the last step is filled up with rows of one more pass."""
    global_batch_size: Count
    """Sequences (of preference methods: pairs or verdicts) per optimizer step, over all ranks."""
    micro_batch_size: Count = 1
    """Sequences (of preference methods: pairs or verdicts) per forward pass of one rank."""
    sequence_length: Annotated[int, Field(ge=8, le=2**24)]
    """Tokens per sequence; longer rows are cut."""
    packing: bool = False
    """Put several short rows into each sequence, kept apart by the attention (sft and cpt only). Sizes of batches then
    count full sequences, so that an epoch has fewer steps."""
    learning_rate: Annotated[float, Field(gt=0, le=10)]
    """Highest learning rate, reached after the warm-up."""
    minimum_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate at the end of the schedule."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """How the learning rate falls; wsd stays constant and falls in the last decay_steps."""
    warmup_steps: CountOrZero = 0
    """Steps in which the learning rate rises from zero."""
    decay_steps: Count | None = None
    """Steps at the end in which wsd falls (wsd only)."""
    optimizer: Optimizer = "adamw"
    """Optimizer; which engine has which is in docs/training.md."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Weight decay, apart from the gradient (of adam and sgd: added to it). Vectors, such as norms, do not decay."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Adam's first moment decay, Lion's share of the momentum in a step; momentum of sgd and muon (there 0.95)."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Adam's second moment decay; decay of Lion's momentum (there 0.99)."""
    epsilon: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Adam's epsilon."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    spike_factor: Annotated[float, Field(ge=0, le=1e6)] = 10.0
    """How many spreads above the median of the last 64 steps a loss or gradient norm is a spike (docs/metrics.md); 0
    does not look for spikes."""
    on_spike: Literal["warn", "stop"] = "warn"
    """warn: the log and the run's events name the samples of a spike, and training goes on. stop: it ends there, and
    `swiftlaunch resume` goes on past it. What is no number always stops training."""
    seed: Seed = 1234
    """Seed of initial adapter weights, data order and dropout."""
    neftune_alpha: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """Strength of the noise on embeddings while training (NEFTune; sft); 5 to 15 is usual, 0 has none."""
    activation_recompute: Literal["none", "full", "selective"] = "none"
    """Activations computed again in backward to save memory."""
    lora: Lora = Field(default_factory=Lora)
    """Adapter settings, for adapter tuners."""
    preference: Preference | None = None
    """Settings of preference methods and reward models."""
    deepspeed: DeepSpeed | None = None
    """Settings of the engine deepspeed."""
    fsdp: Fsdp | None = None
    """Settings of the engine fsdp."""
    liger: bool = False
    """Liger's fused layers on GPUs (deepspeed and fsdp)."""
    overlap: Literal["auto", "on", "off"] = "auto"
    """Exchange gradients and weights between replicas while computing (megatron); auto does it on GPUs."""
    layout: TrainLayout = Field(default_factory=TrainLayout)
    """Parallel layout."""
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    """Checkpoints."""
    validation: Validation | None = None
    """Loss of rows that are not trained on."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_method(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        tuner = values.get("tuner", "full")
        found = with_defaults(values.get("method"), tuner, ADAPTERS, values.get("preference"))
        values = values if found is None else {**values, "preference": found}
        optimizer = values.get("optimizer")
        values = {**(MOMENTA.get(optimizer, {}) if isinstance(optimizer, str) else {}), **values}
        engine = values.get("engine")
        return {**values, engine: values.get(engine) or {}} if engine in SHARDED else values
