"""Plans of the engines deepspeed and fsdp: environment, layout in words, memory, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher import memory
from launcher.errors import Fault, InputError
from launcher.memory import Division, TrainShape
from launcher.topology import Layout

from .conftest import Planned, facts

pytestmark = pytest.mark.unit

GIB = 1024.0  # MiB
SFT = """\
[data]
source = "reasoning-gym"
task = "chain_sum"
[train]
steps = 10
global_batch_size = 16
sequence_length = 128
learning_rate = 1e-3
"""
TWO = "\n[resources.train]\ntasks_per_node = 2\n"


def faults(planned: Planned, text: str) -> list[Fault]:
    with pytest.raises(InputError) as caught:
        planned(text)
    return caught.value.faults


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ('engine = "fsdp"' + TWO, "FSDP DP2"),
        ('engine = "deepspeed"' + TWO, "ZeRO-2 DP2"),
        ('engine = "deepspeed"\ndeepspeed = { stage = 3, offload = "cpu" }' + TWO, "ZeRO-3 DP2"),
        ('engine = "fsdp"\noptimizer = "galore_adamw"\n[resources.train]\ntasks_per_node = 1\n', "FSDP DP1"),
    ],
)
def test_stages_have_the_environment_of_their_engine(planned: Planned, text: str, layout: str) -> None:
    plan = planned(SFT + text)
    assert [plan.stage(name).environment.role for name in ("train", "export")] == ["sharded", "sharded"]
    assert plan.stage("train").layout == layout


def test_megatron_keeps_its_own(planned: Planned) -> None:
    plan = planned(SFT)
    assert plan.stage("train").environment.role == "train"
    assert plan.stage("train").options["train"]["fsdp"] is None


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ('engine = "fsdp"\nlayout = { tensor = 2 }', "train.layout.tensor", "has no tensor parallelism"),
        (
            'engine = "deepspeed"\nlayout = { tensor = 2, sequence_parallel = true }',
            "train.layout.sequence_parallel",
            "has no sequence parallelism",
        ),
        ('engine = "fsdp"\ndeepspeed = { stage = 3 }', "train.deepspeed", 'is for engine = "deepspeed"'),
        ("fsdp = {}", "train.fsdp", 'is for engine = "fsdp", not "megatron"'),
        ("liger = true", "train.liger", "Megatron-core has its own"),
        ('tuner = "qlora"', "train.tuner", "needs weights in 4 bits"),
        ('engine = "deepspeed"\ntuner = "qlora"\ndeepspeed = { stage = 3 }', "train.deepspeed.stage", "whole weights"),
        ('engine = "deepspeed"\ntuner = "pissa"\ndeepspeed = { stage = 3 }', "train.deepspeed.stage", "whole weights"),
        ('engine = "fsdp"\noptimizer = "galore_adamw"\ntuner = "lora"', "train.optimizer", "are small already"),
        ('engine = "fsdp"\noptimizer = "galore_adamw"' + TWO, "train.optimizer", "needs whole weights"),
        ('engine = "fsdp"\noptimizer = "adamw_8bit"' + TWO, "train.optimizer", "needs whole weights"),
        ('engine = "deepspeed"\noptimizer = "apollo_adamw"', "train.optimizer", "is not built for deepspeed"),
        ('engine = "fsdp"\nactivation_recompute = "selective"', "train.activation_recompute", "full or none"),
        (
            'engine = "fsdp"\n[resources.train]\ntasks_per_node = 3\n',
            "train.global_batch_size",
            "not divisible by micro_batch_size * ranks = 1 * 3",
        ),
    ],
)
def test_refused(planned: Planned, text: str, where: str, message: str) -> None:
    found = faults(planned, SFT + text)
    assert [fault for fault in found if fault.where.endswith(where) and message in fault.message], found


def test_pissa_is_no_reference_without_its_adapters(planned: Planned) -> None:
    pairs = SFT.replace('source = "reasoning-gym"\ntask = "chain_sum"', 'source = "files"\ntrain = ["a.jsonl"]')
    found = faults(planned, pairs + 'engine = "fsdp"\nmethod = "dpo"\ntuner = "pissa"')
    assert [fault for fault in found if fault.where.endswith("train.preference.reference")], found


def test_what_does_not_fit_is_told_with_what_this_engine_can_do(planned: Planned) -> None:
    text = SFT + 'engine = "deepspeed"\n[resources.train]\nmemory = "2G"\n'
    (fault,) = [each for each in faults(planned, text) if "alone need" in each.message]
    assert fault.hint == 'use stage = 3, tuner = "lora" or "qlora", or offload = "cpu"'


def test_liger_needs_gpus(planned: Planned) -> None:
    found = faults(planned, SFT + 'engine = "fsdp"\nliger = true')
    assert [fault for fault in found if fault.where == "train.liger"], found


def test_memory_by_hand() -> None:
    qwen3 = facts("qwen3-8b")  # 8 190 735 360 parameters; two tables of 151936 * 4096
    shape = TrainShape(Layout(), 8, "bf16", "adamw", 1, 8, 4096, "full", fused_attention=True)
    count = qwen3.parameters / 1024**2  # MiB a byte
    zero2 = memory.divided_memory(qwen3, shape, Division(weights=False, rounded_beside=True), gpu=True)
    # whole bf16 weights; an eighth of fp32 gradients, and of fp32 weights and two moments
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == pytest.approx((2 * count, count / 2, 1.5 * count))
    zero3 = memory.divided_memory(qwen3, shape, Division(weights=True, rounded_beside=True), gpu=True)
    gathered = 2 * 2 * 2 * 622_329_856 / 1024**2  # two units, of which the tables are the largest
    assert zero3.weights == pytest.approx(2 * count / 8 + gathered)
    fsdp = memory.divided_memory(qwen3, shape, Division(weights=True, rounded_beside=False), gpu=True)
    # FSDP keeps fp32 weights alone, so it has nothing beside them
    assert (fsdp.weights, fsdp.optimizer) == pytest.approx((4 * count / 8 + gathered, count))
    held = Division(weights=True, rounded_beside=False, states_on_host=True, weights_on_host=True)
    assert memory.divided_memory(qwen3, shape, held, gpu=True).states == pytest.approx(gathered)


def test_the_copy_that_is_written_beside_training() -> None:
    """What it took more of the peak than waiting for each save, one process on a CPU in fp32: 1534 and 2049 MiB."""
    model = facts("smollm2-135m-instruct")
    shape = TrainShape(Layout(), 1, "fp32", "adamw", 1, 2, 128, "none", saved_beside=True)
    fsdp, zero2 = Division(weights=True, rounded_beside=False), Division(weights=False, rounded_beside=True)
    assert memory.divided_memory(model, shape, fsdp, gpu=False).copy == pytest.approx(1534, rel=0.02)
    assert memory.divided_memory(model, shape, zero2, gpu=False).copy == pytest.approx(2049, rel=0.02)
    assert memory.divided_memory(model, shape, zero2, gpu=True).copy == 0  # it lies in the node's memory
    waited = replace(shape, saved_beside=False)
    assert memory.divided_memory(model, waited, zero2, gpu=False).copy == 0


def test_qlora_of_8b_fits_where_lora_does_not() -> None:
    qwen3 = facts("qwen3-8b")
    shape = TrainShape(Layout(), 1, "bf16", "adamw", 1, 8, 4096, "full", lora_rank=16, fused_attention=True)
    lora = memory.divided_memory(qwen3, shape, Division(weights=True, rounded_beside=False), gpu=True)
    bits = Division(weights=True, rounded_beside=False, four_bits=True)
    qlora = memory.divided_memory(qwen3, shape, bits, gpu=True)
    assert 15 * GIB < lora.weights < 16 * GIB
    assert 5 * GIB < qlora.weights < 6.5 * GIB


def test_low_rank_and_8_bit_states_are_small() -> None:
    qwen3 = facts("qwen3-8b")
    values: dict[str, Any] = {name: memory.optimizer_values(qwen3, name) for name in memory.OPTIMIZER_STATES}
    assert values["adamw"] == 2
    assert values["adamw_8bit"] == 0.5
    assert values["galore_adamw"] == values["apollo_adamw"] == 2 * 128 / 4096
