from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from launcher.topology import Layout, ModelShape, layout_faults

pytestmark = pytest.mark.unit

SMOLLM2 = ModelShape(layers=30, hidden=576, heads=9, kv_heads=3, vocabulary=49152)
LLAMA_8B = ModelShape(layers=32, hidden=4096, heads=32, kv_heads=8, vocabulary=128256)
MOE = dataclasses.replace(LLAMA_8B, experts=8)


def check(layout: Layout, shape: ModelShape = LLAMA_8B, *, world: int = 8, **changes: Any) -> list[str]:
    sizes = {"global_batch_size": 64, "micro_batch_size": 1, "sequence_length": 4096} | changes
    faults = layout_faults(layout, shape, world_size=world, **sizes)
    return [f"{fault.where}: {fault.message}" for fault in faults]


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout(tensor=8),
        Layout(tensor=2, sequence_parallel=True, pipeline=2, virtual_pipeline=2),
        Layout(tensor=2, context=2, sequence_parallel=True),
        Layout(pipeline=8),
    ],
)
def test_layouts_that_can_run(layout: Layout) -> None:
    assert check(layout) == []


def test_experts_that_can_run() -> None:
    assert check(Layout(expert=4, tensor=2, sequence_parallel=True), MOE) == []


@pytest.mark.parametrize(
    ("layout", "shape", "expected"),
    [
        (Layout(tensor=2), SMOLLM2, "train.layout.tensor: 2 does not divide the model's 9 attention heads"),
        (Layout(tensor=9), SMOLLM2, "train.layout.tensor: 9 does not divide the model's 3 KV heads"),
        (Layout(pipeline=4), SMOLLM2, "train.layout.pipeline: 4 does not divide the model's 30 layers"),
        (Layout(sequence_parallel=True), LLAMA_8B, "train.layout.sequence_parallel: needs tensor > 1"),
        (Layout(virtual_pipeline=2), LLAMA_8B, "train.layout.virtual_pipeline: needs pipeline > 1"),
        (Layout(expert=2), LLAMA_8B, "train.layout.expert: the model has no experts"),
        (Layout(expert=3), MOE, "train.layout.expert: 3 does not divide the model's 8 experts"),
        (Layout(expert=2, tensor=2), MOE, "train.layout.sequence_parallel: experts with tensor > 1 need"),
        (Layout(tensor=2), MOE, "train.layout.sequence_parallel: experts with tensor > 1 need"),
        (Layout(tensor=4, pipeline=4), LLAMA_8B, "train.layout: 8 ranks (nodes * tasks_per_node) cannot be divided"),
    ],
)
def test_layouts_that_cannot_run(layout: Layout, shape: ModelShape, expected: str) -> None:
    assert any(fault.startswith(expected) for fault in check(layout, shape))


def test_batch_and_sequence_faults() -> None:
    assert check(Layout(), global_batch_size=12) == [
        "train.global_batch_size: 12 is not divisible by micro_batch_size * DP = 1 * 8"
    ]
    assert check(Layout(context=2), sequence_length=4098) == [
        "train.layout.context: sequence_length 4098 is not divisible by 2 * context = 4"
    ]
    assert check(Layout(tensor=2, sequence_parallel=True), sequence_length=4097) == [
        "train.layout.sequence_parallel: sequence_length 4097 is not divisible by tensor * context"
    ]
    interleaved = check(Layout(pipeline=4, virtual_pipeline=2), global_batch_size=6)
    assert interleaved[0].startswith("train.layout.virtual_pipeline: the interleaved schedule needs")
    assert interleaved[0].endswith("(3) divisible by pipeline = 4")


def test_every_fault_is_reported_at_once() -> None:
    layout = Layout(tensor=2, pipeline=4, virtual_pipeline=2, sequence_parallel=True)
    faults = check(layout, SMOLLM2, sequence_length=95)
    assert len(faults) == 4  # heads, KV heads, layers, sequence length


def test_the_text_of_a_layout() -> None:
    assert Layout().text(1) == "DP1"
    assert Layout(pipeline=2).text(2) == "PP2"
    assert Layout(tensor=2, sequence_parallel=True, pipeline=2, virtual_pipeline=3).text(16) == "TP2+SP PP2 VPP3 DP4"
    assert Layout(expert=4, expert_tensor=2, context=2).text(8) == "CP2 EP4 ETP2 DP4"


def test_data_parallel_needs_whole_copies() -> None:
    assert Layout(tensor=2, context=2).data_parallel(16) == 4
    for world in (0, 6):
        with pytest.raises(ValueError, match="cannot be divided"):
            Layout(tensor=4).data_parallel(world)
