"""How long a stage takes and how much memory it needs, roughly; every figure says what it rests on.

Times are arithmetic over a rate: 6 floating point operations per trained weight and token (2 forward, 4 backward;
4 with adapters, whose frozen weights need no gradient), as in Kaplan et al. 2020, arXiv:2001.08361. Attention
scores are left out. Results keep two digits, which is more than they are good for.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher import memory
from launcher.models import ModelFacts
from launcher.plan import Estimate, Resources
from launcher.planner.boxes import Box
from launcher.planner.engines import layout_of
from launcher.recipe import Recipe
from launcher.recipe.preference import FORMATS
from launcher.recipe.training import Train
from launcher.sites import Site
from launcher.units import counted, show_count

CPU_GFLOPS_PER_CORE = 30.0  # assumed; 46 measured with one AVX2 core training a 135M model in fp32
CPU_BYTES_PER_SECOND = 10e9  # assumed: reading weights once per generated token
UTILIZATION = 0.4  # assumed share of the peak rate (MFU)
START_SECONDS = 30.0  # measured: 10 to 20 s to import torch and an engine, then the model's weights
TOKEN_SECONDS = 0.025  # assumed: what transformers needs to start the kernels of one token, however small the model
DISK_BYTES_PER_SECOND = 0.5e9  # assumed
GPTQ_CPU_SECONDS_PER_PARAMETER = 1e-6  # measured: 128 CPU seconds for 135 M parameters
LENGTH_WITHOUT_TRAIN = 512  # tokens assumed for a prompt where the recipe names no sequence length

# GPU type -> (dense bf16 TFLOP/s, memory TB/s), vendors' data sheets (SXM or OAM forms; V100: fp16)
GPUS = {
    "a10": (125, 0.6),
    "a100": (312, 2.0),
    "a30": (165, 0.93),
    "a40": (150, 0.7),
    "b200": (2250, 8.0),
    "gh200": (989, 4.0),
    "h100": (989, 3.35),
    "h20": (148, 4.0),
    "h200": (989, 4.8),
    "l4": (121, 0.3),
    "l40s": (362, 0.86),
    "mi250x": (383, 3.2),
    "mi300x": (1307, 5.3),
    "v100": (125, 0.9),
}


@dataclass(frozen=True)
class _Rate:
    """Floating point operations and bytes per second of a whole stage, and where they come from."""

    flops: float
    bytes: float
    basis: str


def estimate(box: Box, need: Resources, recipe: Recipe, facts: ModelFacts, site: Site) -> Estimate:
    """The estimate of one stage; None in it where there is nothing honest to say."""
    memory_mib = _memory_mib(box, need, recipe, facts)
    rate = _rate(need, site, recipe.train.precision if recipe.train and box.worker == "train" else "")
    if rate is None:
        return Estimate(_rough_int(memory_mib), basis=_no_rate(need, site))
    seconds, basis = _seconds(box, need, recipe, facts, rate)
    if seconds is None:
        return Estimate(_rough_int(memory_mib), basis=basis)
    seconds = _rough(seconds)
    gpu_hours = _rough(seconds * need.nodes * need.gpus_per_node / 3600) if need.gpus_per_node else None
    if gpu_hours is not None and (price := site.cost_per_gpu_hour):
        cost = _rough(gpu_hours * price.amount)
        basis += f"; about {cost:g} {price.currency} at {price.amount:g} {price.currency} per GPU hour"
    return Estimate(_rough_int(memory_mib), seconds, gpu_hours, basis)


def train_memory(recipe: Recipe, facts: ModelFacts, need: Resources) -> memory.TrainMemory:
    """Memory of the fullest rank of the recipe's training."""
    train = recipe.train
    assert train is not None
    layout = layout_of(recipe)
    copies = layout.data_parallel(need.world_size)
    shape = memory.TrainShape(
        layout=layout,
        world_size=need.world_size,
        precision=train.precision,
        optimizer=train.optimizer,
        micro_batch_size=train.micro_batch_size * sequences_of(train.method),
        micro_batches=max(1, train.global_batch_size // (train.micro_batch_size * copies)),
        sequence_length=train.sequence_length,
        recompute=train.activation_recompute,
        lora_rank=0 if train.tuner == "full" else train.lora.rank,
        tuner=train.tuner,
        fused_attention=need.gpus_per_node > 0,
        saved_beside=train.checkpoint.asynchronous and train.checkpoint.save_optimizer,
        frozen_copy=train.preference is not None and train.preference.reference == "frozen-copy",
    )
    gpu = need.gpus_per_node > 0
    division = division_of(train)
    if division is not None:
        return memory.divided_memory(facts, shape, division, gpu=gpu)
    return memory.train_memory(facts, shape, gpu=gpu)


def division_of(train: Train) -> memory.Division | None:
    """What the engine divides among all ranks; None for one with a layout."""
    four_bits = train.tuner == "qlora"
    if train.deepspeed is not None:
        offloads, whole = train.deepspeed.offload == "cpu", train.deepspeed.stage == 3
        return memory.Division(
            weights=whole,
            rounded_beside=True,
            four_bits=four_bits,
            states_on_host=offloads,
            weights_on_host=offloads and whole,
        )
    if train.fsdp is not None:
        offloads = train.fsdp.offload == "cpu"
        return memory.Division(
            weights=True, rounded_beside=False, four_bits=four_bits, states_on_host=offloads, weights_on_host=offloads
        )
    return None


def sequences_of(method: str) -> int:
    """Sequences that one sample brings into a forward pass: both answers of a pair."""
    return 2 if FORMATS.get(method) == "preference" else 1


def _memory_mib(box: Box, need: Resources, recipe: Recipe, facts: ModelFacts) -> float:
    gpu = need.gpus_per_node > 0
    width = 2.0 if gpu else 4.0
    if box.worker == "train":
        return train_memory(recipe, facts, need).total
    if box.worker == "export":
        return memory.export_mib(facts)
    if box.worker == "quantize" and recipe.quantize:
        samples = recipe.quantize.calibration_samples or 0
        return memory.quantize_mib(
            facts, method=recipe.quantize.method, samples=samples, length=_length(recipe), gpu=gpu
        )
    if recipe.quantize and (box.role in ("gptq", "compressor") or box.options.get("quantization")):
        width = (recipe.quantize.bits or 8) / 8
    batch, new = 1, recipe.serve.max_new_tokens if recipe.serve else 0
    if box.worker == "evaluate" and recipe.evaluate:
        batch, new = recipe.evaluate.batch_size, recipe.evaluate.max_new_tokens
    return memory.inference_mib(facts, width=width, batch_size=batch, length=_length(recipe) + new, gpu=gpu)


def _seconds(box: Box, need: Resources, recipe: Recipe, facts: ModelFacts, rate: _Rate) -> tuple[float | None, str]:
    """Seconds and what they rest on; None with the reason why there is no figure."""
    width = 2 if need.gpus_per_node else 4
    if box.worker == "train":
        return _train_seconds(need, recipe, facts, rate)
    if box.worker == "export":
        seconds = START_SECONDS + facts.parameters * 2 * 3 / DISK_BYTES_PER_SECOND
        return seconds, "weights read, written and hashed at 0.5 GB/s (assumed)"
    if box.worker == "quantize" and recipe.quantize:
        if recipe.quantize.method == "gptq":
            if need.gpus_per_node:
                return None, "no estimate: GPTQ's time on GPUs was not measured"
            cores = need.tasks_per_node * need.cpus_per_task
            seconds = START_SECONDS + facts.parameters * GPTQ_CPU_SECONDS_PER_PARAMETER / cores
            return seconds, f"1 CPU second per million parameters (measured on 135 M) on {counted(cores, 'CPU core')}"
        tokens = (recipe.quantize.calibration_samples or 0) * _length(recipe)
        seconds = 2 * START_SECONDS + 2.0 * facts.active_parameters * tokens / rate.flops
        return seconds, f"{show_count(tokens)} tokens to calibrate with; {rate.basis}"
    if box.worker == "evaluate" and recipe.evaluate:
        rows = _rows(recipe)
        if rows is None:
            return None, "no estimate: how many rows the files hold is not known here"
        new = recipe.evaluate.max_new_tokens
        reads = -(-rows // recipe.evaluate.batch_size) * new  # one reading of all weights per token of a batch
        tokens = rows * (new + _length(recipe) * (2 if recipe.evaluate.perplexity else 1))
        seconds = START_SECONDS + reads * max(TOKEN_SECONDS, facts.active_parameters * width / rate.bytes)
        seconds += 2.0 * facts.active_parameters * tokens / rate.flops
        return seconds, f"{rows} rows of up to {new} new tokens, at least 25 ms each (assumed); {rate.basis}"
    return None, "no estimate: a server's time is its keep_alive_minutes and its start"


def _train_seconds(need: Resources, recipe: Recipe, facts: ModelFacts, rate: _Rate) -> tuple[float | None, str]:
    train = recipe.train
    assert train is not None
    steps = train.steps
    if steps is None:
        if recipe.data is None or recipe.data.source == "files":
            return None, "no estimate: how many rows the files hold is not known here"
        steps = -(-recipe.data.train_size * (train.epochs or 1) // train.global_batch_size)
    tokens = steps * train.global_batch_size * train.sequence_length * sequences_of(train.method)
    factor = (6 if train.tuner == "full" else 4) + (2 if train.activation_recompute == "full" else 0)
    looks_more = 0
    if train.preference is not None and train.preference.reference is not None:
        # forward passes of the reference; KTO's are over two answers, and its policy reads the second one too
        looks_more = 3 if train.method == "kto" else 1
    factor += 2 * looks_more
    layout = layout_of(recipe)
    micro_batches = max(1, train.global_batch_size // (train.micro_batch_size * layout.data_parallel(need.world_size)))
    bubble = (layout.pipeline - 1) / (micro_batches * layout.virtual_pipeline)
    operations = factor * tokens
    if train.validation is not None:
        rows = max(train.global_batch_size, train.validation.limit)
        looks = steps // train.validation.every_steps + 1
        operations += 2 * (1 + looks_more) * looks * rows * train.sequence_length * sequences_of(train.method)
    seconds = START_SECONDS + operations * facts.active_parameters / rate.flops * (1 + bubble)
    work = f"at most {show_count(tokens)} tokens, {factor} operations per weight and token"
    return seconds, f"{work}; {rate.basis}"


def _rate(need: Resources, site: Site, precision: str) -> _Rate | None:
    """The rate of all nodes; None for GPUs without a figure."""
    if need.gpus_per_node:
        known = gpu_rate(site.node.gpu_type)
        if known is None or precision == "fp32":
            return None
        gpus = need.nodes * need.gpus_per_node
        return _Rate(
            known[0] * 1e12 * UTILIZATION * gpus,
            known[1] * 1e12 * UTILIZATION * gpus,
            f"{UTILIZATION:.0%} (assumed) of {known[0]:g} TFLOP/s of {gpus} x {site.node.gpu_type}",
        )
    cores = need.tasks_per_node * need.cpus_per_task
    machines = 1 if site.scheduler == "local" else need.nodes  # nodes of the local scheduler share one machine
    total = cores * machines
    return _Rate(
        total * CPU_GFLOPS_PER_CORE * 1e9,
        CPU_BYTES_PER_SECOND * machines,
        f"{CPU_GFLOPS_PER_CORE:g} GFLOP/s a core (assumed), {counted(total, 'CPU core')}",
    )


def gpu_rate(gpu_type: str) -> tuple[float, float] | None:
    """(TFLOP/s, TB/s) of a type as schedulers write it ("nvidia_h100_80gb_hbm3", "a100"); None if unknown."""
    for word in gpu_type.lower().replace("-", "_").split("_"):
        if word in GPUS:
            return GPUS[word]
    return None


def peak_tflops(recipe: Recipe, need: Resources, site: Site) -> float | None:
    """TFLOP/s that a training rank could do at best, which MFU is a share of; None where that is not known.

    One rank has one GPU. Rates are dense ones of bf16: for fp32, whatever a GPU does with it, there is none.
    """
    known = gpu_rate(site.node.gpu_type) if need.gpus_per_node else None
    return known[0] if known and recipe.train and recipe.train.precision == "bf16" else None


def _no_rate(need: Resources, site: Site) -> str:
    if gpu_rate(site.node.gpu_type) is None:
        return f"no estimate of time: no rate is known for GPU type {site.node.gpu_type or '(not said by the site)'}"
    return "no estimate of time: rates are of bf16, this is fp32"


def _rows(recipe: Recipe) -> int | None:
    if recipe.evaluate and recipe.evaluate.limit:
        return recipe.evaluate.limit
    if recipe.data is None or recipe.data.source == "files":
        return None
    return recipe.data.evaluation_size


def _length(recipe: Recipe) -> int:
    return recipe.train.sequence_length if recipe.train else LENGTH_WITHOUT_TRAIN


def _rough(value: float) -> float:
    return float(f"{value:.2g}")


def _rough_int(value: float) -> int:
    return int(_rough(value))
