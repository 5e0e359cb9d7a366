"""What Megatron-core trains, and what of a config.json it would do otherwise than transformers."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import InputError
from launcher.families import TRAINED, linear_layers, refusal, target_layers
from launcher.models import known_models, supported_architectures

pytestmark = pytest.mark.unit

# of config.json as the releases have it
DEEPSEEK_V2_LITE: dict[str, Any] = {
    "model_type": "deepseek_v2", "hidden_act": "silu", "attention_bias": False, "topk_method": "greedy", "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 6, "norm_topk_prob": False, "scoring_func": "softmax",
    "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707},
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3", "hidden_act": "silu", "attention_bias": False, "topk_method": "noaux_tc", "n_group": 8,
    "topk_group": 4, "num_experts_per_tok": 8, "norm_topk_prob": True, "scoring_func": "sigmoid",
    "rope_scaling": {"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
QWEN2: dict[str, Any] = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 131072}
MISTRAL: dict[str, Any] = {"model_type": "mistral", "sliding_window": None}
QWEN3_MOE: dict[str, Any] = {"model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": []}
GLM4: dict[str, Any] = {"model_type": "glm4", "attention_bias": True}
GPT_OSS: dict[str, Any] = {"model_type": "gpt_oss", "swiglu_limit": 7.0, "attention_bias": True, "sliding_window": 128}


@pytest.mark.parametrize("config", [DEEPSEEK_V2_LITE, DEEPSEEK_V3, QWEN2, MISTRAL, QWEN3_MOE, GLM4, GPT_OSS])
def test_releases_are_trained(config: dict[str, Any]) -> None:
    assert refusal(config) == ""


@pytest.mark.parametrize(
    ("config", "changes", "reason"),
    [
        ({"model_type": "gemma2"}, {}, "Megatron-core does not train gemma2 models here"),
        ({"model_type": "kimi_k2"}, {}, "Megatron-core does not train kimi_k2 models here"),
        (DEEPSEEK_V3, {"quantization_config": {"quant_method": "fp8"}}, "its weights are quantized (fp8)"),
        (GPT_OSS, {"quantization_config": {"quant_method": "mxfp4"}}, "its weights are quantized (mxfp4)"),
        (QWEN2, {"hidden_act": "gelu"}, "the activation gelu would be trained as silu"),
        ({"model_type": "llama"}, {"attention_bias": True}, "the biases of its attention"),
        ({"model_type": "llama"}, {"mlp_bias": True}, "the biases of its MLP"),
        (MISTRAL, {"sliding_window": 4096}, "its window of 4096 tokens"),
        (QWEN2, {"use_sliding_window": True}, "its window of 131072 tokens"),
        ({"model_type": "olmoe"}, {"clip_qkv": 8.0}, "clipped queries"),
        (QWEN3_MOE, {"decoder_sparse_step": 2}, "layers without experts"),
        (QWEN3_MOE, {"mlp_only_layers": [0]}, "layers without experts"),
        (GPT_OSS, {"swiglu_limit": 10.0}, "its activation has other constants"),
        (DEEPSEEK_V3, {"rope_interleave": False}, "rotary positions that are not interleaved"),
        (DEEPSEEK_V3, {"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn without mscale"),
        (DEEPSEEK_V3, {"norm_topk_prob": False}, "norm_topk_prob = false"),
        (DEEPSEEK_V3, {"topk_group": 2}, "groups of experts are judged by the best 2 in transformers"),
        (DEEPSEEK_V2_LITE, {"norm_topk_prob": True}, "norm_topk_prob = true"),
        (DEEPSEEK_V2_LITE, {"n_group": 8}, "n_group has no meaning"),
        (
            DEEPSEEK_V2_LITE,  # as DeepSeek-V2 itself has it
            {"topk_method": "group_limited_greedy", "n_group": 8, "topk_group": 3},
            "groups of experts are judged by the best 1 in transformers, and would be by the best 2",
        ),
    ],
)
def test_what_would_be_another_model_is_refused(config: dict[str, Any], changes: dict[str, Any], reason: str) -> None:
    assert refusal({**config, **changes}).startswith(reason)


def test_known_models_of_trained_families_are_trained() -> None:
    assert set(TRAINED) <= set(supported_architectures())
    assert all(facts.megatron == (facts.architecture in TRAINED) for facts in known_models())


def test_layers_that_take_adapters() -> None:
    llama = linear_layers("llama")
    assert target_layers(["all-linear"], llama) == ["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
    assert target_layers(["v_proj", "q_proj", "k_proj", "down_proj"], llama) == ["linear_qkv", "linear_fc2"]
    assert target_layers(["linear_proj"], llama) == ["linear_proj"]
    assert target_layers(["gate_up_proj"], linear_layers("glm4")) == ["linear_fc1"]
    assert target_layers(["q_proj"], linear_layers("deepseek_v2")) == ["linear_q_proj"]
    compressed = linear_layers("deepseek_v3", compressed_queries=True)
    assert target_layers(["q_a_proj", "q_b_proj"], compressed) == ["linear_q_down_proj", "linear_q_up_proj"]
    assert target_layers(["all-linear"], linear_layers("gpt_oss")) == ["linear_qkv", "linear_proj"]


@pytest.mark.parametrize(
    ("architecture", "names", "message"),
    [
        ("llama", ["q_proj", "v_proj"], "q_proj, k_proj, v_proj are one matrix in Megatron-core and take one adapter"),
        ("llama", ["o_proj", "lm_head"], "not linear layers of this model: lm_head"),
        ("glm4", ["gate_proj"], "not linear layers of this model: gate_proj"),
        ("gpt_oss", ["down_proj"], "not linear layers of this model: down_proj"),
        ("deepseek_v3", ["kv_b_proj", "k_proj"], "not linear layers of this model: k_proj"),
    ],
)
def test_layers_that_take_none(architecture: str, names: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        target_layers(names, linear_layers(architecture))
    (fault,) = caught.value.faults
    assert fault.message == message
    assert fault.hint
