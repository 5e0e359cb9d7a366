"""Architecture facts of a model, from the config.json that Hugging Face folders hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import Fault, InputError
from launcher.families import linear_layers, refusal
from launcher.topology import ModelShape


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a decoder-only language model. `experts` is 0 for a dense model."""

    name: str  # short, lower case
    architecture: str  # model_type of config.json
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int  # of queries and keys
    intermediate: int  # width of a dense MLP
    vocabulary: int
    experts: int
    experts_per_token: int
    expert_intermediate: int  # width of one expert
    shared_intermediate: int  # width of the experts that see every token, together
    dense_layers: int  # layers without experts; all of them in a dense model
    tied_embeddings: bool
    max_positions: int  # tokens
    parameters: int
    active_parameters: int  # that a token meets
    compressed_queries: bool = False  # multi-head latent attention whose queries go through a narrow matrix too
    megatron_refusal: str = ""  # why Megatron-core does not train it here
    hf_id: str = ""
    licence: str = ""
    package: str = ""  # "name==version" on PyPI, for models that come as a Python package

    @property
    def shape(self) -> ModelShape:
        """The sizes that a parallel layout must divide."""
        return ModelShape(
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            vocabulary=self.vocabulary,
            experts=self.experts,
        )

    @property
    def megatron(self) -> bool:
        """Whether Megatron-core trains it here."""
        return not self.megatron_refusal

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines that train it; the small ones take whatever transformers does."""
        return (*(("megatron",) if self.megatron else ()), "deepspeed", "fsdp")

    @property
    def linear_layers(self) -> dict[str, tuple[str, ...]]:
        """Its layers that can take an adapter on Megatron-core, and the Hugging Face layers that each holds."""
        return linear_layers(self.architecture, compressed_queries=self.compressed_queries)


@dataclass(frozen=True)
class _Family:
    """What a model_type has besides its sizes. A text names the config key (and its default) that decides."""

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: str = ""
    qk_norm: str = ""  # "head": per head; "full": over all heads; "optional": per head where use_qk_norm
    norms: int = 2  # RMS norms per layer, hidden values each
    tied: bool = False  # where config.json does not say
    experts_key: str = ""  # a family with experts, and the config key of their number
    expert_width_key: str = "moe_intermediate_size"
    latent: bool = False  # multi-head latent attention
    sinks: bool = False  # one learned attention sink per head
    expert_bias: bool = False


_FAMILIES = {
    "llama": _Family(qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": _Family(),
    "phi3": _Family(),
    "qwen2": _Family(qkv_bias=True),
    "qwen3": _Family(qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head"),
    "qwen2_moe": _Family(qkv_bias=True, experts_key="num_experts"),
    "qwen3_moe": _Family(
        qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head", experts_key="num_experts"
    ),
    "mixtral": _Family(experts_key="num_local_experts", expert_width_key="intermediate_size"),
    "olmoe": _Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        qk_norm="full",
        experts_key="num_experts",
        expert_width_key="intermediate_size",
    ),
    "deepseek_v2": _Family(latent=True, experts_key="n_routed_experts"),
    "deepseek_v3": _Family(latent=True, experts_key="n_routed_experts"),
    "kimi_k2": _Family(latent=True, experts_key="n_routed_experts"),
    "glm4": _Family(qkv_bias="attention_bias", norms=4),
    "glm4_moe": _Family(qkv_bias="attention_bias", qk_norm="optional", experts_key="n_routed_experts"),
    "gemma2": _Family(qkv_bias="attention_bias", output_bias="attention_bias", norms=4, tied=True),
    "gemma3_text": _Family(qkv_bias="attention_bias", output_bias="attention_bias", qk_norm="head", norms=4, tied=True),
    "gpt_oss": _Family(
        qkv_bias=True,
        output_bias=True,
        experts_key="num_local_experts",
        expert_width_key="intermediate_size",
        sinks=True,
        expert_bias=True,
    ),
}


def supported_architectures() -> tuple[str, ...]:
    """The values of model_type that `from_config` knows."""
    return tuple(sorted(_FAMILIES))


def from_config(
    config: Mapping[str, Any],
    *,
    name: str = "",
    hf_id: str = "",
    licence: str = "",
    package: str = "",
    where: str = "config.json",
) -> ModelFacts:
    """The facts that a config.json holds, its parameters counted as transformers would build them.

    Raises InputError: an unknown model_type, sizes that are missing or no whole numbers.
    """
    architecture = config.get("model_type")
    family = _FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        message = f"{architecture!r} is not an architecture that is known here" if architecture else "is missing"
        raise InputError([Fault(f"{where} model_type", message, f"known: {', '.join(supported_architectures())}")])
    read = _Reader(config, where)
    heads = read.size("num_attention_heads")
    hidden = read.size("hidden_size")
    kv_heads = read.size("num_key_value_heads", heads)
    experts = read.size(family.experts_key, 0) if family.experts_key else 0
    layers = read.size("num_hidden_layers")
    width = read.size("intermediate_size")
    expert_width = read.size(family.expert_width_key) if experts else 0
    per_token = read.size("num_experts_per_tok") if experts else 0
    shared = _shared_width(read, expert_width) if experts else 0
    if family.latent:
        head_dim = read.size("qk_nope_head_dim") + read.size("qk_rope_head_dim")
        attention = _latent_attention(read, hidden, heads)
    else:
        head_dim = read.size("head_dim", hidden // heads if heads else 0)
        attention = _grouped_attention(config, family, hidden, heads, kv_heads, head_dim)
    vocabulary = read.size("vocab_size")
    positions = read.size("max_position_embeddings", 0)
    sparse = _sparse_layers(read, layers) if experts else 0
    read.raise_faults()

    dense_mlp = 3 * hidden * width + (2 * width + hidden if family.mlp_bias and config.get(family.mlp_bias) else 0)
    expert = 3 * hidden * expert_width + (2 * expert_width + hidden if family.expert_bias else 0)
    router = hidden * experts + (experts if family.expert_bias else 0)
    gate = hidden if architecture == "qwen2_moe" else 0
    sparse_mlp = experts * expert + router + 3 * hidden * shared + gate
    tied = config.get("tie_word_embeddings")
    tied = family.tied if tied is None else bool(tied)
    tables = vocabulary * hidden * (1 if tied else 2)
    parameters = (
        tables
        + hidden  # the last norm
        + layers * (attention + family.norms * hidden)
        + sparse * sparse_mlp
        + (layers - sparse) * dense_mlp
    )
    return ModelFacts(
        name=name or str(architecture),
        architecture=str(architecture),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=width,
        vocabulary=vocabulary,
        experts=experts,
        experts_per_token=per_token,
        expert_intermediate=expert_width,
        shared_intermediate=shared,
        dense_layers=layers - sparse,
        tied_embeddings=tied,
        max_positions=positions,
        parameters=parameters,
        active_parameters=parameters - sparse * (experts - per_token) * expert,
        compressed_queries=family.latent and read.size("q_lora_rank", 0) > 0,
        megatron_refusal=refusal(config),
        hf_id=hf_id,
        licence=licence,
        package=package,
    )


class _Reader:
    """Reads sizes and collects what is wrong with them."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where
        self.faults: list[Fault] = []

    def size(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            self.faults.append(Fault(f"{self.where} {key}", "is missing"))
        elif isinstance(value, bool) or not isinstance(value, int) or value < 0 or (value == 0 and default is None):
            self.faults.append(Fault(f"{self.where} {key}", f"{value!r} is not a size"))
        else:
            return value
        return 1  # goes on to find further faults

    def raise_faults(self) -> None:
        if self.faults:
            raise InputError(list(dict.fromkeys(self.faults)))


def _grouped_attention(
    config: Mapping[str, Any], family: _Family, hidden: int, heads: int, kv_heads: int, head_dim: int
) -> int:
    """Parameters of one layer's multi-head or grouped-query attention."""
    query, key_value = heads * head_dim, kv_heads * head_dim
    count = 2 * hidden * query + 2 * hidden * key_value
    count += (query + 2 * key_value) if _on(config, family.qkv_bias) else 0
    count += hidden if _on(config, family.output_bias) else 0
    count += heads if family.sinks else 0
    if family.qk_norm == "head" or (family.qk_norm == "optional" and config.get("use_qk_norm")):
        count += 2 * head_dim
    elif family.qk_norm == "full":
        count += query + key_value
    return count


def _on(config: Mapping[str, Any], switch: bool | str) -> bool:
    return bool(config.get(switch)) if isinstance(switch, str) else switch


def _latent_attention(read: _Reader, hidden: int, heads: int) -> int:
    """Parameters of one layer's multi-head latent attention (DeepSeek-V2, section 2.1)."""
    rope, nope = read.size("qk_rope_head_dim"), read.size("qk_nope_head_dim")
    value, rank = read.size("v_head_dim"), read.size("kv_lora_rank")
    query_rank = read.size("q_lora_rank", 0)
    query = heads * (nope + rope)
    count = hidden * query_rank + query_rank + query_rank * query if query_rank else hidden * query
    count += hidden * (rank + rope) + rank + rank * heads * (nope + value)
    return count + heads * value * hidden


def _shared_width(read: _Reader, expert_width: int) -> int:
    """Width of the experts that see every token: one wide one (Qwen2-MoE) or several of the usual width."""
    return read.size("shared_expert_intermediate_size", read.size("n_shared_experts", 0) * expert_width)


def _sparse_layers(read: _Reader, layers: int) -> int:
    """Layers with experts: all but the first ones (DeepSeek, GLM), or every n-th (Qwen-MoE)."""
    step = read.size("decoder_sparse_step", 1) or 1
    listed = read.config.get("mlp_only_layers") or ()
    first = read.size("first_k_dense_replace", 0)
    return sum((layer + 1) % step == 0 and layer not in listed and layer >= first for layer in range(layers))
