"""The model of this rank: Megatron-core chunks from a Hugging Face folder, with adapters where asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from launcher.errors import WorkerError
from launcher.families import linear_layers, refusal
from launcher.record import read_json
from launcher.topology import Layout
from launcher.work.megatron import base_weights
from launcher.work.megatron.adapters import adapt
from launcher.work.megatron.mends import family_settings, mend_export, mend_model


class Model:
    """The model chunks of this rank: one, or several under virtual pipeline parallelism.

    `chunks` are wrapped for training, `bare` are the GPTModels themselves (adapters inside). With `scores` it ends in
    a head of one row, which is trained whole in any case, instead of in logits.
    """

    def __init__(self, config: Any, bare: list[Any], adapted: list[Any], *, scores: bool = False) -> None:
        self.config = config
        self.bare = bare
        self.adapted = adapted  # PeftModels where there are adapters, else the same as bare
        self.scores = scores
        self.chunks: list[Any] = []

    def gather(self) -> None:
        """Have the weights of the last update on this rank, before they are read in another way than by a forward."""
        for chunk in self.chunks:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)

    @property
    def bridge(self) -> Any:
        """mcore-bridge's converter between this model and Hugging Face weights."""
        return self.config.bridge


def build(path: Path, train: Mapping[str, Any], layout: Layout) -> Model:
    """Build this rank's part of the model and load its weights. Raises WorkerError for models it cannot be true to."""
    from mcore_bridge import ModelConfig, get_mcore_model, hf_to_mcore_config
    from transformers import AutoConfig

    if reason := refusal(read_json(path / "config.json") or {}):
        raise WorkerError(reason, where="model", hint="choose another model, or another release of it")
    found = AutoConfig.from_pretrained(path)
    settings = hf_to_mcore_config(found) | family_settings(found.model_type)
    settings.update(_settings(train, layout))
    scores = train["method"] == "rm"
    if scores:
        _must_classify(found.model_type)
        settings.update(task_type="seq_cls", num_labels=1, untie_embeddings_and_output_weights=True)
    try:
        config = ModelConfig(**settings)
    except (ValueError, AssertionError, TypeError) as error:
        raise WorkerError(f"Megatron-core refuses this model or layout: {error}", where="train.layout") from error
    mend_export(config.bridge, found.model_type)
    bare = get_mcore_model(config)
    for chunk in bare:
        _mark_split_weights(chunk)
        mend_model(chunk, found.model_type)
    base_weights.load(config.bridge, bare, path, scores=scores)
    layers = linear_layers(found.model_type, compressed_queries=bool(getattr(found, "q_lora_rank", None)))
    adapted = bare if train["tuner"] == "full" else [adapt(chunk, train, layers) for chunk in bare]
    if scores:
        for chunk in bare:
            _initialise_head(chunk, seed=train["seed"], deviation=found.initializer_range)
    return Model(config, bare, adapted, scores=scores)


def frozen(path: Path, train: Mapping[str, Any], layout: Layout) -> list[Any]:
    """Chunks of the model as it is in its folder, without gradients: what training is compared with."""
    model = build(path, {**train, "tuner": "full"}, layout)
    for chunk in model.bare:
        chunk.requires_grad_(False)
        chunk.eval()
    return [_in_bf16(model.config, chunk) if train["precision"] != "fp32" else chunk for chunk in model.bare]


def wrap(model: Model, train: Mapping[str, Any], *, distributed_optimizer: bool) -> None:
    """Wrap the chunks for mixed precision and data parallelism.

    With `overlap` replicas exchange gradients while backward goes on, and weights while the next forward does: those
    of the model are behind until then, or until `gather`.
    """
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads

    wanted = train.get("overlap", "auto")
    overlap = torch.cuda.is_available() if wanted == "auto" else wanted == "on"
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=overlap and distributed_optimizer,
        use_distributed_optimizer=distributed_optimizer,
        check_for_nan_in_grad=False,  # the loop looks at loss and gradient norm itself and names the samples
    )
    for chunk in model.bare:
        _mark_experts(chunk)
    for index, chunk in enumerate(model.adapted):
        module = _in_bf16(model.config, chunk) if train["precision"] != "fp32" else chunk
        model.chunks.append(
            DistributedDataParallel(
                config=model.config, ddp_config=settings, module=module, disable_bucketing=index > 0
            )
        )
        model.chunks[-1].train()
    model.config.finalize_model_grads_func = finalize_model_grads
    if overlap:  # gradients are exchanged once, in the last micro-batch
        paused = [chunk.no_sync for chunk in model.chunks]
        model.config.no_sync_func = paused if len(paused) > 1 else paused[0]


def _in_bf16(config: Any, chunk: Any) -> Any:
    """The chunk with weights and activations in bf16; the routers' biases keep their fp32, as in transformers.

    Megatron-core rounds them too before it widens them again, which sends tokens to other experts.
    """
    from megatron.core.transformer.module import Float16Module

    routers = [module for module in chunk.modules() if getattr(module, "expert_bias", None) is not None]
    exact = [router.expert_bias for router in routers]
    wrapped = Float16Module(config, chunk)
    for router, bias in zip(routers, exact, strict=True):
        router.expert_bias = bias
    return wrapped


def _mark_experts(chunk: Any) -> None:
    """Mark the experts' weights as those whose gradients the ranks with the same experts add up.

    Megatron-core does it under expert parallelism only. With tensor parallelism alone every tensor-parallel rank has
    whole experts and a part of the tokens; unmarked, each would learn from its own part, and the ranks drift apart.
    """
    for name, parameter in chunk.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False


def _settings(train: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    dtype = torch.float32 if train["precision"] == "fp32" else torch.bfloat16
    interleaved = layout.virtual_pipeline > 1
    on_gpu = torch.cuda.is_available()
    settings: dict[str, Any] = {
        "params_dtype": dtype,
        "pipeline_dtype": dtype,
        "bf16": dtype == torch.bfloat16,
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline if interleaved else None,
        "context_parallel_size": layout.context,
        "expert_model_parallel_size": layout.expert,
        "expert_tensor_parallel_size": layout.expert_tensor,
        "sequence_parallel": layout.sequence_parallel,
        # With two ranks and the interleaved schedule, batched sends between the same pair arrive swapped, without an
        # error; the plain schedule has no overlapped form.
        "overlap_p2p_comm": interleaved,
        "batch_p2p_comm": not interleaved,
        # gloo still reads a tensor that is being sent after the schedule has freed it; NCCL's streams order the two
        "deallocate_pipeline_outputs": on_gpu,
        "variable_seq_lengths": False,  # batches are padded to sequence_length
        "moe_router_bias_update_rate": 0.0,  # biases that balance experts stay: an adapter could not carry them along
        "calculate_per_token_loss": True,  # gradients are divided by the global batch's tokens, in any layout
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "use_cpu_initialization": not on_gpu,
        "gradient_accumulation_fusion": False,  # needs Apex
    }
    if not on_gpu:
        for fusion in ("apply_rope_fusion", "bias_activation_fusion", "bias_dropout_fusion", "masked_softmax_fusion"):
            settings[fusion] = False
    if train["precision"] == "fp8":  # scales from the numbers themselves, so that checkpoints need no history of them
        settings.update(fp8="hybrid", fp8_recipe="tensorwise")
    recompute = train.get("activation_recompute", "none")
    if recompute == "full":
        settings.update(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    elif recompute == "selective":
        settings.update(recompute_granularity="selective", recompute_modules=["core_attn"])
    return settings


def _must_classify(model_type: str) -> None:
    """A reward model is of use where transformers can load it."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    if model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise WorkerError(
            f"transformers has no sequence classification model of the type {model_type}",
            where="train.method",
            hint="choose another model for a reward model",
        )


def _initialise_head(chunk: Any, *, seed: int, deviation: float) -> None:
    """Fill the row that makes a score of the last hidden state: the same values on every rank."""
    if not chunk.post_process:
        return
    weight = chunk.output_layer.weight
    digest = hashlib.sha256(f"{seed}:score".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape).normal_(0.0, deviation, generator=generator))
    weight.requires_grad_(True)
    weight.tensor_model_parallel = False  # whole on every tensor-parallel rank: its gradient's norm counts once


def _mark_split_weights(chunk: Any) -> None:
    """Mark embedding and output weights, and attention sinks, as split over tensor-parallel ranks.

    Megatron-core does it while it initialises weights, which is skipped for weights that are loaded, and never for
    sinks; unmarked, all ranks but the first would drop out of the gradient norm.
    """
    from megatron.core.tensor_parallel import ColumnParallelLinear, VocabParallelEmbedding
    from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

    for module in chunk.modules():
        if isinstance(module, (ColumnParallelLinear, VocabParallelEmbedding)):
            weight = module.weight
            if weight is not None and not hasattr(weight, "tensor_model_parallel"):
                set_tensor_model_parallel_attributes(weight, is_parallel=True, dim=0, stride=1)
        sinks = getattr(module, "softmax_offset", None)
        if sinks is not None:
            set_tensor_model_parallel_attributes(sinks, is_parallel=True, dim=0, stride=1)
