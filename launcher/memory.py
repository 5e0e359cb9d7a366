"""How much memory a stage needs, from the sizes of the model: weights, gradients, optimizer, activations.

Counts are of elements ("values") or bytes as names say; results are MiB of one rank. What a formula rests on
stands in its docstring. Kernels' workspaces and fragmentation are not modelled: a result is good to some tens of
percent, and only the part called `states` (weights, gradients, optimizer) is exact.

KORTHIKANTI: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models",
arXiv:2205.05198.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.models import ModelFacts
from launcher.topology import Layout

MIB = 1024 * 1024

FRAMEWORK_CPU_MIB = 1024  # measured: resident memory after importing torch and megatron-core, gloo buffers included
FRAMEWORK_GPU_MIB = 2560  # assumed: CUDA context, NCCL buffers, cuBLAS workspace
INFERENCE_CPU_MIB = 700  # measured: torch and transformers imported

WEIGHTS_FILE_MIB = 5 * 1024  # what Hugging Face's save_pretrained cuts safetensors files to

VALUE_BYTES = {"fp32": 4, "bf16": 2, "fp8": 2}  # of weights and activations; fp8 is what matrices are rounded to
# fp32 values per parameter; GaLore's and APOLLO's are of projections, see `optimizer_values`
OPTIMIZER_STATES = {
    **{"adamw": 2.0, "adam": 2.0, "sgd": 1.0, "lion": 1.0},
    **{"muon": 1.0, "adamw_8bit": 0.5, "galore_adamw": 2.0, "apollo_adamw": 2.0},
}
WHOLE = ("muon", "adamw_8bit")  # whose states replicas of a Megatron-core model do not share out among them
PROJECTED = {"galore_adamw": 128, "apollo_adamw": 128}  # rank of the projection
NF4_BYTES = 0.52  # 4 bits and, doubly quantized, an 8-bit scale for each 64 (arXiv:2305.14314, section 3)


@dataclass(frozen=True)
class TrainMemory:
    """MiB of the fullest rank, by what holds it."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    framework: float
    copy: float = 0.0  # of what is saved, while it is written beside training; on GPUs it is in the host's memory

    @property
    def states(self) -> float:
        """What is there at every moment, whatever the batch: weights, gradients, optimizer."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.states + self.activations + self.framework + self.copy


@dataclass(frozen=True)
class TrainShape:
    """What of a training run memory depends on. Lengths in tokens, batches in sequences of one rank."""

    layout: Layout
    world_size: int
    precision: str  # of VALUE_BYTES
    optimizer: str  # of OPTIMIZER_STATES
    micro_batch_size: int
    micro_batches: int  # per step and data parallel copy
    sequence_length: int
    recompute: str  # none, full or selective
    lora_rank: int = 0  # 0 trains all weights
    fused_attention: bool = False  # scores are never stored (flash attention; on GPUs)
    saved_beside: bool = False  # checkpoints are written beside training, from a copy
    frozen_copy: bool = False  # the model is there twice, once as a reference without gradients
    tuner: str = ""  # of adapters: dora has magnitudes too, pissa the frozen factors at the start


def train_memory(facts: ModelFacts, shape: TrainShape, *, gpu: bool) -> TrainMemory:
    """Memory of the fullest rank."""
    held = rank_parameters(facts, shape.layout)
    trained = adapter_parameters(facts, shape) if shape.lora_rank else held
    width = VALUE_BYTES[shape.precision]
    rounded = 2 if shape.precision == "fp8" else 0  # each weight in fp8, and transposed for backward
    replicas = shape.layout.data_parallel(shape.world_size) * shape.layout.context
    gradient, optimizer = training_bytes(
        shape.precision, shape.optimizer, shards=1 if shape.optimizer in WHOLE else replicas
    )
    if shape.optimizer == "muon":  # the tables take AdamW
        optimizer += 4 * rank_tables(facts, shape.layout) / held
    adapter = trained * (2 if shape.tuner == "pissa" else 1) if shape.lora_rank else 0
    return TrainMemory(
        weights=(held * (2 if shape.frozen_copy else 1) * (width + rounded) + adapter * width) / MIB,
        gradients=trained * gradient / MIB,
        optimizer=trained * optimizer / MIB,
        activations=activation_bytes(facts, shape) / MIB,
        framework=FRAMEWORK_GPU_MIB if gpu else FRAMEWORK_CPU_MIB,
        copy=trained * (width + optimizer) / MIB if shape.saved_beside and not gpu else 0.0,
    )


@dataclass(frozen=True)
class Division:
    """What an engine that divides a model among all ranks divides, and where it holds it."""

    weights: bool  # divided too: FSDP, ZeRO-3
    rounded_beside: bool  # fp32 weights are optimizer state beside the ones computed with (DeepSpeed in bf16)
    four_bits: bool = False  # the frozen weights are NF4
    states_on_host: bool = False
    weights_on_host: bool = False


def divided_memory(facts: ModelFacts, shape: TrainShape, division: Division, *, gpu: bool) -> TrainMemory:
    """Memory of a rank under ZeRO or FSDP: gradients and optimizer states are divided by the ranks, weights as well
    or not (Rajbhandari et al. 2020, "ZeRO", arXiv:1910.02054, figure 1).

    Where weights are divided, two units at a time are put together in the number format: one computes, the next one
    is on its way. What is held on the host does not count for a GPU.
    """
    trained = adapter_parameters(facts, shape) if shape.lora_rank else facts.parameters
    width, ranks = VALUE_BYTES[shape.precision], shape.world_size
    table = facts.vocabulary * facts.hidden * (1 if facts.tied_embeddings else 2)
    frozen = bool(shape.lora_rank)
    held = float(facts.parameters) * (width if frozen or division.rounded_beside else 4)
    if division.four_bits:
        held = (facts.parameters - table) * NF4_BYTES + table * width
    held += 4 * trained if frozen else 0
    copy = float(facts.parameters) * width if shape.frozen_copy else 0.0
    gathered = 0.0
    if division.weights and ranks > 1:
        held, copy = held / ranks, copy / ranks
        gathered = 2 * max(table, (facts.parameters - table) / facts.layers) * width
    values = optimizer_values(facts, shape.optimizer)
    if division.rounded_beside and shape.precision == "bf16":
        values += 1
    saved = trained * 4 * (1 + values) / ranks + (0 if division.weights else trained * width)
    states = 0.0 if gpu and division.states_on_host else 1.0
    weights = 0.0 if gpu and division.weights_on_host else 1.0
    return TrainMemory(
        weights=((held + copy) * weights + gathered) / MIB,
        gradients=4 * trained / ranks * states / MIB,
        optimizer=4 * values * trained / ranks * states / MIB,
        activations=activation_bytes(facts, shape) / MIB,
        framework=FRAMEWORK_GPU_MIB if gpu else FRAMEWORK_CPU_MIB,
        copy=saved / MIB if shape.saved_beside and not gpu else 0.0,
    )


def optimizer_values(facts: ModelFacts, optimizer: str) -> float:
    """fp32 values per trained parameter that an optimizer keeps; of projections those of a hidden x hidden matrix."""
    values = OPTIMIZER_STATES[optimizer]
    return values * min(1.0, PROJECTED[optimizer] / facts.hidden) if optimizer in PROJECTED else values


def training_bytes(precision: str, optimizer: str, *, shards: int = 1) -> tuple[float, float]:
    """(gradient, optimizer) bytes per trained parameter, the weight itself left out.

    Gradients are accumulated in fp32. bf16 keeps an fp32 copy of the weight beside the optimizer's states, so
    AdamW needs 2 + 4 + 12 bytes, in fp32 4 + 4 + 8. The distributed optimizer divides its part by
    `shards`, the ranks that hold the same weights (data and context parallel).
    Source: Megatron-LM, docs on the distributed optimizer, table of theoretical bytes per parameter.
    """
    copies = OPTIMIZER_STATES[optimizer] + (0 if precision == "fp32" else 1)
    return 4.0, 4.0 * copies / shards


def rank_parameters(facts: ModelFacts, layout: Layout) -> int:
    """Parameters of the rank that holds most: its share of the layers, and the embedding (both, without pipeline).

    TP divides the tables and everything in layers but experts, which EP and expert TP divide. Norms and routers are
    not divided, which is too little to count.
    """
    tables = facts.vocabulary * facts.hidden * (1 if facts.tied_embeddings else 2)
    sparse = facts.layers - facts.dense_layers
    experts = sparse * facts.experts * 3 * facts.hidden * facts.expert_intermediate
    layers = (facts.parameters - tables - experts) / layout.tensor + experts / (layout.expert * layout.expert_tensor)
    share = -(-facts.layers // layout.pipeline) / facts.layers
    return round(layers * share + rank_tables(facts, layout))


def rank_tables(facts: ModelFacts, layout: Layout) -> float:
    """Parameters of embedding and output of the rank that has most of them."""
    table = facts.vocabulary * facts.hidden
    return table * (1 if facts.tied_embeddings or layout.pipeline > 1 else 2) / layout.tensor


def adapter_parameters(facts: ModelFacts, shape: TrainShape) -> int:
    """What an adapter tuner trains on one rank: the two factors, of dora a length for each output too."""
    lengths = adapted_sizes(facts, shape.layout)[1] if shape.tuner == "dora" else 0
    return lora_parameters(facts, shape.lora_rank, shape.layout) + round(lengths)


def lora_parameters(facts: ModelFacts, rank: int, layout: Layout) -> int:
    """Adapter parameters of one rank, with an adapter on each linear layer: rank * (inputs + outputs)."""
    return round(rank * sum(adapted_sizes(facts, layout)))


def adapted_sizes(facts: ModelFacts, layout: Layout) -> tuple[float, float]:
    """Inputs and outputs of the linear layers of one rank, those of each layer and expert counted.

    Megatron's linear layers are fused (Q with K and V, gate with up), each with one adapter. Of a divided layer one
    of the two matrices is divided; that is left out here, so with TP this is an upper bound. Latent attention is
    counted like any other, which is somewhat more than its narrow layers have.
    """
    query, key_value = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    inputs = facts.layers * (facts.hidden + query) + facts.dense_layers * (facts.hidden + facts.intermediate)
    outputs = facts.layers * (query + 2 * key_value + facts.hidden)
    outputs += facts.dense_layers * (2 * facts.intermediate + facts.hidden)
    sparse = facts.layers - facts.dense_layers
    if sparse and "linear_fc1" in facts.linear_layers:  # experts that can take adapters
        held = [(sparse * facts.experts // layout.expert, facts.expert_intermediate)]
        if facts.shared_intermediate:
            held.append((sparse, facts.shared_intermediate))
        inputs += sum(count * (facts.hidden + width) for count, width in held)
        outputs += sum(count * (2 * width + facts.hidden) for count, width in held)
    share = -(-facts.layers // layout.pipeline) / facts.layers
    return inputs * share, outputs * share


def mlp_width(facts: ModelFacts) -> float:
    """Width of the MLP that a token meets, averaged over the layers: dense, or its experts and the shared ones."""
    sparse = facts.layers - facts.dense_layers
    expert = facts.experts_per_token * facts.expert_intermediate + facts.shared_intermediate
    return (facts.dense_layers * facts.intermediate + sparse * expert) / facts.layers


def activation_bytes(facts: ModelFacts, shape: TrainShape) -> float:
    """Bytes of activations that the fullest rank keeps for backward.

    Layers: `layer_activation_values` for each micro-batch in flight. 1F1B keeps as many as there are pipeline
    stages on the first stage, so the whole model's layers once, and 1 + (p - 1) / (p * v) times that with the
    interleaved schedule (KORTHIKANTI, section 4.2.3). Full recompute keeps a layer's input (their 2sbh bytes) and,
    while it runs again, one layer whole. Logits, on the last stage: the values themselves, an fp32 copy, and its
    gradient.
    """
    layout = shape.layout
    width = VALUE_BYTES[shape.precision]
    tokens = shape.micro_batch_size * shape.sequence_length / layout.context
    stage_layers = facts.layers / layout.pipeline
    in_flight = float(min(layout.pipeline, shape.micro_batches))
    if layout.virtual_pipeline > 1:
        in_flight *= 1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual_pipeline)
    whole_layer = layer_activation_values(facts, shape)
    split = layout.tensor if layout.sequence_parallel else 1
    kept = facts.hidden / split if shape.recompute == "full" else whole_layer
    once = whole_layer if shape.recompute == "full" else 0.0
    first = tokens * width * (in_flight * stage_layers * kept + once)
    logits = tokens * facts.vocabulary / layout.tensor * (width + 8)
    last = tokens * width * (stage_layers * kept + once) + logits
    return max(first, last)


def layer_activation_values(facts: ModelFacts, shape: TrainShape) -> float:
    """Values per token that one layer keeps for backward, without dropout.

    Counted as in KORTHIKANTI, section 4.1, for a pre-norm layer with grouped queries and a gated MLP: inputs of two
    norms and of the two linear layers behind them (4h, divided by sequence parallelism alone), Q, K, V and the
    attention's output (2q + 2kv), gate, up and their product (3f per active expert), divided by TP. Attention that
    is not fused keeps 2.5 values per head and key (their 5as bytes at two bytes a value). DoRA keeps the outputs of
    each linear layer as they are before their rows get their lengths.
    """
    layout = shape.layout
    query, key_value = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    divided = 2 * query + 2 * key_value + 3 * mlp_width(facts)
    if not shape.fused_attention and shape.recompute != "selective":
        divided += 2.5 * facts.heads * shape.sequence_length
    split = layout.tensor if layout.sequence_parallel else 1
    kept = 4 * facts.hidden / split + divided / layout.tensor
    if shape.tuner == "dora":
        kept += (query + 2 * key_value + 2 * mlp_width(facts)) / layout.tensor + 2 * facts.hidden / split
    return kept


def inference_mib(facts: ModelFacts, *, width: float, batch_size: int, length: int, gpu: bool) -> float:
    """MiB to generate with `width` bytes a weight: weights, keys and values of `length` tokens, logits.

    Embeddings, keys and values have two bytes on GPUs, four on CPUs; quantization leaves embeddings alone. Generating
    needs the logits of one token; a perplexity those of one sequence, in fp32 beside the model's own, and again as
    probabilities.
    """
    plain = 2 if gpu else 4
    embeddings = facts.vocabulary * facts.hidden * (1 if facts.tied_embeddings else 2)
    weights = (facts.parameters - embeddings) * width + embeddings * plain
    cache = batch_size * length * 2 * facts.layers * facts.kv_heads * facts.head_dim * plain
    logits = length * facts.vocabulary * (plain + 8)
    framework = FRAMEWORK_GPU_MIB if gpu else INFERENCE_CPU_MIB
    return (weights + cache + logits) / MIB + framework


def quantize_mib(facts: ModelFacts, *, method: str, samples: int, length: int, gpu: bool) -> float:
    """MiB to quantize layer by layer: the weights (fp32 for GPTQ on CPUs), calibration inputs, second derivatives.

    GPTQ (Frantar et al. 2022, arXiv:2210.17323) keeps, for the linear layer with the most inputs, the Hessian and
    its inverse in fp32; the calibration activations of a layer's input and output are kept in fp32 too.
    """
    weights = facts.parameters * (4 if method == "gptq" and not gpu else 2)
    inputs = max(linear_inputs(facts))
    hessian = 2 * 4 * inputs * inputs if method == "gptq" else 0
    calibration = 2 * 4 * samples * length * facts.hidden
    framework = FRAMEWORK_GPU_MIB if gpu else INFERENCE_CPU_MIB
    return (weights + hessian + calibration) / MIB + framework


def linear_inputs(facts: ModelFacts) -> list[int]:
    """Numbers of inputs of the linear layers, which quantization groups divide; each once, ascending."""
    widths = {facts.hidden, facts.heads * facts.head_dim}
    if facts.dense_layers:
        widths.add(facts.intermediate)
    if facts.experts:
        widths |= {facts.expert_intermediate, facts.shared_intermediate} - {0}
    return sorted(widths)


def extract_mib(facts: ModelFacts, precision: str) -> float:
    """MiB to read a checkpoint into the whole model and write its weights, a file at a time."""
    weights = facts.parameters * VALUE_BYTES[precision] / MIB
    return 2 * weights + 2 * min(weights, WEIGHTS_FILE_MIB) + FRAMEWORK_CPU_MIB


def export_mib(facts: ModelFacts) -> float:
    """MiB to merge an adapter file by file: one file of bf16 weights, before and after. Files are cut at 5 GiB."""
    return 2 * min(facts.parameters * 2 / MIB, WEIGHTS_FILE_MIB) + INFERENCE_CPU_MIB
