"""Parallel layout: how ranks divide into tensor, pipeline, context, expert and data parallel groups.

The rules are Megatron-core's (parallel_state.initialize_model_parallel): attention sees
world = tp * pp * cp * dp, experts see world = etp * ep * pp * edp.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import Fault


@dataclass(frozen=True)
class ModelShape:
    """The sizes that a layout must divide. `experts` is 0 for a dense model."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    experts: int = 0


@dataclass(frozen=True)
class Layout:
    """Sizes of the parallel groups; data parallel follows from the world size."""

    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    context: int = 1
    expert: int = 1
    expert_tensor: int = 1
    sequence_parallel: bool = False

    @property
    def model_parallel(self) -> int:
        """Ranks that hold one copy of the dense part of the model: tp * pp * cp."""
        return self.tensor * self.pipeline * self.context

    def data_parallel(self, world_size: int) -> int:
        """Copies of the model among `world_size` ranks. Raises ValueError if it does not divide."""
        copies, rest = divmod(world_size, self.model_parallel)
        if rest or not copies:
            raise ValueError(f"{world_size} ranks cannot be divided by tp*pp*cp = {self.model_parallel}")
        return copies

    def text(self, world_size: int) -> str:
        """The layout in the field's short form, sizes of 1 left out: "TP2+SP PP2 DP4"."""
        words = []
        if self.tensor > 1:
            words.append(f"TP{self.tensor}" + ("+SP" if self.sequence_parallel else ""))
        if self.pipeline > 1:
            words.append(f"PP{self.pipeline}")
        if self.virtual_pipeline > 1:
            words.append(f"VPP{self.virtual_pipeline}")
        for name, size in (("CP", self.context), ("EP", self.expert), ("ETP", self.expert_tensor)):
            if size > 1:
                words.append(f"{name}{size}")
        copies = self.data_parallel(world_size)
        if copies > 1 or not words:
            words.append(f"DP{copies}")
        return " ".join(words)


def layout_faults(
    layout: Layout,
    shape: ModelShape,
    *,
    world_size: int,
    global_batch_size: int,
    micro_batch_size: int,
    sequence_length: int,
    where: str = "train.layout",
) -> list[Fault]:
    """Everything that makes this layout impossible for this model, batch and number of ranks.

    `sequence_length` is in tokens, batch sizes are in sequences. An empty list means that it can run.
    """
    faults: list[Fault] = []

    def fault(key: str, message: str, hint: str = "") -> None:
        faults.append(Fault(f"{where}.{key}" if key else where, message, hint))

    def must_divide(key: str, size: int, what: str, total: int) -> None:
        if total % size:
            fault(key, f"{size} does not divide the model's {total} {what}", _divisors_hint(total))

    must_divide("tensor", layout.tensor, "attention heads", shape.heads)
    must_divide("tensor", layout.tensor, "KV heads", shape.kv_heads)
    must_divide("pipeline", layout.pipeline * layout.virtual_pipeline, "layers (pipeline * VPP)", shape.layers)
    if layout.sequence_parallel and layout.tensor == 1:
        fault("sequence_parallel", "needs tensor > 1", "set tensor = 2 or more, or sequence_parallel = false")
    if layout.virtual_pipeline > 1 and layout.pipeline == 1:
        fault("virtual_pipeline", "needs pipeline > 1", "set pipeline = 2 or more, or remove virtual_pipeline")
    if layout.sequence_parallel and sequence_length % (layout.tensor * layout.context):
        fault("sequence_parallel", f"sequence_length {sequence_length} is not divisible by tensor * context")
    if layout.context > 1 and sequence_length % (2 * layout.context):
        fault(
            "context",
            f"sequence_length {sequence_length} is not divisible by 2 * context = {2 * layout.context}",
            "causal load balancing cuts a sequence into 2 * context chunks",
        )
    if layout.expert > 1 or layout.expert_tensor > 1:
        if not shape.experts:
            fault("expert", "the model has no experts", "remove expert and expert_tensor")
        elif shape.experts % layout.expert:
            must_divide("expert", layout.expert, "experts", shape.experts)
    if shape.experts and layout.tensor > 1 and not layout.sequence_parallel:
        fault("sequence_parallel", "experts with tensor > 1 need sequence_parallel = true")
    if world_size % layout.model_parallel:
        fault(
            "",
            f"{world_size} ranks (nodes * tasks_per_node) cannot be divided by tensor * pipeline * context = "
            f"{layout.model_parallel}",
            f"use a multiple of {layout.model_parallel} ranks, or a smaller layout",
        )
        return faults
    if world_size % (layout.expert * layout.expert_tensor * layout.pipeline):
        fault("expert", f"{world_size} ranks cannot be divided by expert_tensor * expert * pipeline")
    copies = layout.data_parallel(world_size)
    if global_batch_size % (micro_batch_size * copies):
        fault_hint = f"use a multiple of {micro_batch_size * copies}"
        faults.append(
            Fault(
                "train.global_batch_size",
                f"{global_batch_size} is not divisible by micro_batch_size * DP = {micro_batch_size} * {copies}",
                fault_hint,
            )
        )
    elif layout.virtual_pipeline > 1 and (global_batch_size // (micro_batch_size * copies)) % layout.pipeline:
        fault(
            "virtual_pipeline",
            f"the interleaved schedule needs micro-batches a step ({global_batch_size // (micro_batch_size * copies)}) "
            f"divisible by pipeline = {layout.pipeline}",
        )
    return faults


def _divisors_hint(total: int) -> str:
    divisors = [str(size) for size in range(1, min(total, 64) + 1) if total % size == 0]
    return "possible: " + ", ".join(divisors)
