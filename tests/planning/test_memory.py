"""Memory formulas against numbers worked out by hand, in the comments."""

from __future__ import annotations

import dataclasses

import pytest

from launcher import memory
from launcher.memory import TrainShape
from launcher.topology import Layout

from .conftest import facts

pytestmark = pytest.mark.unit

SMOLLM2 = facts("smollm2-135m-instruct")  # 30 layers, hidden 576, 9 heads of 64, 3 KV heads, MLP 1536
QWEN3 = facts("qwen3-8b")  # 36 layers, hidden 4096, 32 heads of 128, 8 KV heads, MLP 12288, untied
MOE = facts("qwen3-30b-a3b")
MIB = 1024 * 1024


def shape(layout: Layout, world: int, **changes: object) -> TrainShape:
    usual = TrainShape(layout, world, "bf16", "adamw", 1, 8, 4096, "none", fused_attention=True)
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def test_one_rank_holds_exactly_the_model() -> None:
    for model in (SMOLLM2, QWEN3, MOE):
        assert memory.rank_parameters(model, Layout()) == model.parameters


def test_pipeline_divides_layers_and_leaves_a_table_on_the_first_rank() -> None:
    # SmolLM2: table 49152 * 576 = 28 311 552; the rest, 106 203 456, halves
    assert memory.rank_parameters(SMOLLM2, Layout(pipeline=2)) == 28_311_552 + 53_101_728
    # 30 layers over 4 ranks: the fullest has 8
    assert memory.rank_parameters(SMOLLM2, Layout(pipeline=4)) == 28_311_552 + 28_320_922
    # Qwen3-8B, untied: one of two tables (151936 * 4096 = 622 329 856), half of the rest (6 946 075 648)
    assert memory.rank_parameters(QWEN3, Layout(pipeline=2)) == 622_329_856 + 3_473_037_824


def test_tensor_and_expert_parallel_divide_what_they_divide() -> None:
    assert memory.rank_parameters(QWEN3, Layout(tensor=4)) == round(QWEN3.parameters / 4)
    experts = MOE.layers * MOE.experts * 3 * MOE.hidden * MOE.expert_intermediate
    rest = MOE.parameters - experts
    assert memory.rank_parameters(MOE, Layout(expert=8)) == rest + experts // 8
    assert memory.rank_parameters(MOE, Layout(tensor=2, expert=8)) == round(rest / 2) + experts // 8


@pytest.mark.parametrize(
    ("precision", "shards", "expected"),
    [("bf16", 1, 16.0), ("fp32", 1, 12.0), ("bf16", 8, 5.5), ("fp32", 8, 5.0)],
)
def test_bytes_per_parameter(precision: str, shards: int, expected: float) -> None:
    """Megatron-LM's table, less the weight itself (2 or 4): 18, 16, 6 + 12/d, 8 + 8/d."""
    assert sum(memory.training_bytes(precision, "adamw", shards=shards)) == expected


def test_adapters_by_hand() -> None:
    # a layer: QKV 576 + 576 + 2*192, output 576 + 576, gate and up 576 + 3072, down 1536 + 576 -> 8448; rank 16
    assert memory.lora_parameters(SMOLLM2, 16, Layout()) == 16 * 30 * 8448
    assert memory.lora_parameters(SMOLLM2, 16, Layout(pipeline=2)) == 16 * 15 * 8448
    gpt_oss = facts("gpt-oss-20b")  # whose experts take no adapters: 64 heads of queries, 8 of keys and values
    assert memory.lora_parameters(gpt_oss, 16, Layout()) == 16 * 24 * (2880 + 80 * 64 + 64 * 64 + 2880)


def test_lengths_and_frozen_starts_of_adapters() -> None:
    lora, dora, pissa = (shape(Layout(), 1, lora_rank=16, tuner=tuner) for tuner in ("lora", "dora", "pissa"))
    # outputs of a layer: QKV 4096 + 2*1024, output 4096, gate and up 2*12288, down 4096
    lengths = 36 * (4096 + 2048 + 4096 + 24576 + 4096)
    assert memory.adapter_parameters(QWEN3, dora) - memory.adapter_parameters(QWEN3, lora) == lengths
    kept = memory.layer_activation_values(QWEN3, dora) - memory.layer_activation_values(QWEN3, lora)
    assert kept == lengths / 36
    one, two = (memory.train_memory(QWEN3, each, gpu=True) for each in (lora, pissa))
    assert two.weights - one.weights == pytest.approx(2 * memory.adapter_parameters(QWEN3, lora) / memory.MIB)
    assert two.optimizer == one.optimizer


def test_states_that_replicas_do_not_share_out() -> None:
    def states(optimizer: str, world_size: int) -> float:
        found = memory.train_memory(QWEN3, shape(Layout(), world_size, optimizer=optimizer, precision="fp32"), gpu=True)
        return found.optimizer * memory.MIB

    whole = QWEN3.parameters
    assert states("lion", 8) == pytest.approx(4 * whole / 8)
    assert states("adamw_8bit", 8) == pytest.approx(2 * whole)
    assert states("muon", 8) == pytest.approx(4 * whole + 4 * 2 * 151936 * 4096)  # tables have two


def test_fp8_holds_weights_three_times() -> None:
    bf16, fp8 = (memory.train_memory(QWEN3, shape(Layout(), 1, precision=each), gpu=True) for each in ("bf16", "fp8"))
    assert fp8.weights == 2 * bf16.weights
    assert fp8.optimizer == bf16.optimizer


def test_activations_by_hand() -> None:
    # values per token and layer: 4*4096 + 2*4096 + 2*1024 + 3*12288 = 63488; two bytes, 4096 tokens, 36 layers;
    # logits 4096 * 151936 * (2 + 8)
    plain = shape(Layout(), 1)
    assert memory.activation_bytes(QWEN3, plain) == 63488 * 2 * 4096 * 36 + 4096 * 151936 * 10
    # full recompute keeps the inputs of layers, and one layer while it runs again
    full = shape(Layout(), 1, recompute="full")
    assert memory.activation_bytes(QWEN3, full) == (4096 * 36 + 63488) * 2 * 4096 + 4096 * 151936 * 10


def test_scores_are_kept_only_where_attention_is_not_fused() -> None:
    # 2.5 values per head and key: 2.5 * 9 * 96
    plain = shape(Layout(), 1, sequence_length=96, fused_attention=False)
    fused = dataclasses.replace(plain, fused_attention=True)
    difference = memory.layer_activation_values(SMOLLM2, plain) - memory.layer_activation_values(SMOLLM2, fused)
    assert difference == 2160
    selective = dataclasses.replace(plain, recompute="selective")
    assert memory.layer_activation_values(SMOLLM2, selective) == memory.layer_activation_values(SMOLLM2, fused)


def test_tensor_parallel_leaves_the_norms_to_sequence_parallel() -> None:
    # Korthikanti et al. 2022: 10sbh stays whole under TP, sequence parallelism divides it too
    whole = memory.layer_activation_values(QWEN3, shape(Layout(), 1))
    tensor = memory.layer_activation_values(QWEN3, shape(Layout(tensor=8), 8))
    both = memory.layer_activation_values(QWEN3, shape(Layout(tensor=8, sequence_parallel=True), 8))
    assert whole == 63488
    assert tensor == 16384 + 47104 / 8
    assert both == whole / 8


def test_the_first_pipeline_rank_keeps_as_many_micro_batches_as_there_are_ranks() -> None:
    per_layer = 63488 * 2 * 4096
    four = memory.activation_bytes(QWEN3, shape(Layout(pipeline=4), 4))
    assert four == per_layer * 36  # 4 micro-batches of 9 layers
    one = memory.activation_bytes(QWEN3, shape(Layout(pipeline=4), 4, micro_batches=1))
    assert one == per_layer * 9 + 4096 * 151936 * 10  # the last rank, with the logits
    interleaved = memory.activation_bytes(QWEN3, shape(Layout(pipeline=4, virtual_pipeline=3), 4))
    assert interleaved == pytest.approx(per_layer * 36 * (1 + 3 / 12))


def test_context_parallel_divides_tokens_and_optimizer() -> None:
    whole, halves = shape(Layout(), 1), shape(Layout(context=2), 2)
    assert memory.activation_bytes(QWEN3, halves) == memory.activation_bytes(QWEN3, whole) / 2
    one, two = (memory.train_memory(QWEN3, each, gpu=True) for each in (whole, halves))
    assert two.optimizer == one.optimizer / 2
    assert two.gradients == one.gradients


def test_full_training_of_qwen3_8b_by_hand() -> None:
    # 8 GPUs, TP4 and DP2: 8 190 735 360 / 4 parameters; bf16: 2 + 4 + 12/2 bytes
    found = memory.train_memory(QWEN3, shape(Layout(tensor=4), 8), gpu=True)
    share = 8_190_735_360 / 4
    assert found.states == pytest.approx(share * 12 / MIB)
    assert found.framework == memory.FRAMEWORK_GPU_MIB
    assert found.total == found.states + found.activations + found.framework


def test_frozen_weights_have_neither_gradient_nor_optimizer() -> None:
    adapters = memory.train_memory(SMOLLM2, shape(Layout(), 1, precision="fp32", lora_rank=16), gpu=False)
    trained = 16 * 30 * 8448
    assert adapters.weights == (134_515_008 + trained) * 4 / MIB
    assert adapters.gradients == trained * 4 / MIB
    assert adapters.optimizer == trained * 8 / MIB


def test_a_frozen_copy_is_the_weights_once_more() -> None:
    alone = memory.train_memory(QWEN3, shape(Layout(), 1), gpu=True)
    beside = memory.train_memory(QWEN3, shape(Layout(), 1, frozen_copy=True), gpu=True)
    assert beside.weights == 2 * alone.weights
    assert beside.total - alone.total == pytest.approx(QWEN3.parameters * 2 / MIB)


def test_inference_by_hand() -> None:
    # fp32 on CPUs: 134 515 008 * 4; keys and values 8 * 100 * 2 * 30 * 192 * 4; logits 100 * 49152 * 12
    found = memory.inference_mib(SMOLLM2, width=4, batch_size=8, length=100, gpu=False)
    assert found == pytest.approx((538_060_032 + 36_864_000 + 58_982_400) / MIB + memory.INFERENCE_CPU_MIB)
    # 4 bits for all but the table
    four = memory.inference_mib(SMOLLM2, width=0.5, batch_size=8, length=100, gpu=False)
    assert (found - four) * MIB == pytest.approx(106_203_456 * 3.5)


def test_quantization_by_hand() -> None:
    # weights fp32; Hessian and inverse of the widest input, 1536; 32 rows of 96 tokens, in and out
    found = memory.quantize_mib(SMOLLM2, method="gptq", samples=32, length=96, gpu=False)
    expected = 134_515_008 * 4 + 2 * 4 * 1536**2 + 2 * 4 * 32 * 96 * 576
    assert found == pytest.approx(expected / MIB + memory.INFERENCE_CPU_MIB)


def test_export_holds_one_file_at_a_time() -> None:
    assert memory.export_mib(SMOLLM2) == pytest.approx(2 * 134_515_008 * 2 / MIB + memory.INFERENCE_CPU_MIB)
    assert memory.export_mib(MOE) == 2 * 5120 + memory.INFERENCE_CPU_MIB


def test_inputs_of_linear_layers() -> None:
    assert memory.linear_inputs(SMOLLM2) == [576, 1536]
    assert memory.linear_inputs(QWEN3) == [4096, 12288]
    assert memory.linear_inputs(MOE) == [768, 2048, 4096]
