"""A Megatron-core linear layer with a low-rank adapter, and DoRA's magnitude over it.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353: the adapted matrix V = W + s B A
keeps the directions of its rows, and their lengths are trained apart, W' = m V / |V|, |V| being one norm for each row
of outputs. As section 4.3 proposes, |V| follows the training but gets no gradient.

Megatron-core must be importable when this module is imported (process.prepare).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from mcore_bridge import LoraParallelLinear
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.extensions.transformer_engine import (
    TEGroupedLinear,
    TELayerNormColumnParallelLinear,
    TELinear,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch import nn

NAME = "default"  # PEFT's name of the adapter
START = "start"  # the frozen factors that PiSSA takes off again; see pissa.py


def adaptable() -> tuple[type, ...]:
    """The layer classes that adapters go on."""
    return TELayerNormColumnParallelLinear, TELinear, TEGroupedLinear


class AdaptedLinear(LoraParallelLinear):  # type: ignore[misc]
    """mcore-bridge's layer, told everything that PEFT's configuration says, and a magnitude where there is one.

    PEFT hands the configuration over whole; mcore-bridge's own entry reads rank and alpha and leaves dropout and the
    scale of rsLoRA at their defaults.
    """

    def __init__(
        self, base_layer: Any, adapter_name: str, *, config: Any, r: int, lora_alpha: int, **_: object
    ) -> None:
        super().__init__(
            base_layer,
            adapter_name,
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=config.lora_dropout,
            use_rslora=config.use_rslora,
        )
        weight = getattr(base_layer, "weight", None)
        self.is_whole = getattr(weight, "tensor_model_parallel", None) is False  # on every tensor-parallel rank
        if self.is_whole:
            self.tp_size = 1

    def add_magnitude(self) -> None:
        """Train the lengths of the rows apart, starting from what they are."""
        self.lora_magnitude_vector[NAME] = Magnitude(self)

    def add_start(self) -> None:
        """Add frozen factors beside A and B, with the opposite sign."""
        rank = self.r[NAME]
        self.update_layer(
            START,
            rank,
            lora_alpha=self.lora_alpha[NAME],
            lora_dropout=0.0,
            init_lora_weights=True,
            use_rslora=False,
            lora_bias=False,
        )
        self.scaling[START] = -self.scaling[NAME]
        self.set_adapter([NAME, START])

    def set_adapter(self, adapter_names: Any, inference_mode: bool = False) -> None:
        """As PEFT's, which would train all that is active; it is called whenever adapters come back on."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        for factors in (self.lora_A, self.lora_B):
            if START in factors:
                factors[START].requires_grad_(False)

    def base_weights(self) -> list[Any]:
        """The frozen matrix on this rank, [outputs, inputs]; of experts one for each that lies here."""
        return _weights(self.base_layer)

    def factors(self, adapter: str = NAME) -> list[tuple[Any, Any]]:
        """(A, B) on this rank, [rank, inputs] and [outputs, rank], beside each of `base_weights`."""
        return list(zip(_weights(self.lora_A[adapter]), _weights(self.lora_B[adapter]), strict=True))

    def exported(self) -> Iterator[tuple[Any, Any]]:
        """What an adapter in Hugging Face form has in the place of this rank's parameters, (parameter, tensor).

        A magnitude is one more column of B: both have a number for each output, and are divided and fused alike.
        What PiSSA takes off is rank beside what it trains.
        """
        if START in self.lora_A:
            for (a, b), (a_start, b_start) in zip(self.factors(), self.factors(START), strict=True):
                yield a, torch.cat([a, a_start])
                yield b, torch.cat([b, -b_start], dim=1)
        if NAME in self.lora_magnitude_vector:
            for (_, b), magnitude in zip(self.factors(), self.lora_magnitude_vector[NAME].parameters(), strict=True):
                yield b, torch.cat([b.float(), magnitude[:, None]], dim=1)

    def forward(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """W' x and what the layer adds, as the base layer returns them."""
        out, bias = super().forward(x, *args, **kwargs)
        if self.disable_adapters or NAME not in self.lora_magnitude_vector:
            return out, bias
        scale = self.lora_magnitude_vector[NAME](self, *args).to(out.dtype)
        added = self.base_layer.bias if bias is None and self.base_layer.use_bias else None
        return (out * scale if added is None else (out - added) * scale + added), bias

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """As mcore-bridge's, with the halves of a gated layer (gate, up) told apart in what has its outputs.

        Each tensor-parallel rank holds a slice of either half; one after the other they are not the whole matrix.
        """
        state: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if prefix.endswith("linear_fc1.") and self.config.gated_linear_unit and not self.is_grouped:
            for name in state:
                if name.startswith((f"{prefix}lora_B.", f"{prefix}lora_magnitude_vector.")) and name.endswith(
                    ".weight"
                ):
                    state[name] = apply_swiglu_sharded_factory(state[name], sharded_offsets)
        return state


class Magnitude(nn.Module):  # type: ignore[misc]
    """The lengths of the rows of one adapted matrix, [outputs] of this rank; of experts one vector for each.

    They are trained in fp32 whatever the model's number format is: rounded to bf16, the model would not start at the
    base model, and a step would seldom move them.
    """

    def __init__(self, layer: AdaptedLinear) -> None:
        super().__init__()
        self.by_expert = layer.is_grouped
        self.split_inputs = layer.is_parallel_a and layer.tp_size > 1 and not layer.is_expert
        self.split_outputs = not (layer.is_parallel_a or layer.is_expert or layer.is_whole)
        with torch.no_grad():
            self.base_squares = [self._whole(base.float().square().sum(dim=1)) for base in layer.base_weights()]
        for index, squares in enumerate(self.base_squares):
            parameter = nn.Parameter(squares.sqrt())
            _, b = layer.factors()[index]
            for mark in ("allreduce", "sequence_parallel", "tensor_model_parallel"):
                if hasattr(b, mark):  # B has an output for each row too, so both are alike in where they lie
                    setattr(parameter, mark, getattr(b, mark))
            parameter.partition_dim = 0 if self.split_outputs else -1
            parameter.partition_stride = 1
            self.register_parameter(f"weight{index}" if self.by_expert else "weight", parameter)

    def forward(self, layer: AdaptedLinear, counts: Any = None) -> Any:
        """m / |V|, [outputs]; of experts [rows of tokens, outputs], `counts` rows for each expert in turn."""
        norms = self._norms(layer)
        scales = [weight / norm for weight, norm in zip(self.parameters(), norms, strict=True)]
        if not self.by_expert:
            return scales[0]
        rows = torch.as_tensor(counts, device=scales[0].device)
        return torch.repeat_interleave(torch.stack(scales), rows, dim=0)

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _norms(self, layer: AdaptedLinear) -> list[Any]:
        """|V| of each row: |W|^2 + 2 s <W A^T, B> + s^2 <B A A^T, B>, without making V."""
        scale = layer.scaling[NAME]
        found = []
        for base, squares, (a, b) in zip(layer.base_weights(), self.base_squares, layer.factors(), strict=True):
            mixed = (base @ a.T.to(base.dtype)).float()
            inner = a.float() @ a.float().T
            change = ((2 * scale * mixed + scale**2 * (b.float() @ inner)) * b.float()).sum(dim=1)
            found.append((squares + self._whole(change)).clamp(min=torch.finfo(torch.float32).tiny).sqrt())
        return found

    def _whole(self, part: Any) -> Any:
        """Sums over whole rows, of sums over the inputs that lie on this rank."""
        if self.split_inputs:
            dist.all_reduce(part, group=parallel_state.get_tensor_model_parallel_group())
        return part

    def _apply(self, function: Any, recurse: bool = True) -> Any:
        """Follow the model to its device, but not to its number format."""
        kept = [weight.data for weight in self.parameters()]
        super()._apply(function, recurse)
        for weight, before in zip(self.parameters(), kept, strict=True):
            weight.data = before.to(weight.device)
        self.base_squares = [squares.to(weight.device) for squares in self.base_squares]
        return self

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """Each vector's place in the checkpoint, which other layouts read too."""
        if not self.by_expert:
            axes = {"weight": 0} if self.split_outputs else {}
            return dict(make_sharded_tensors_for_checkpoint({"weight": self.weight}, prefix, axes, sharded_offsets))
        here = len(self.base_squares)
        first = parallel_state.get_expert_model_parallel_rank() * here
        experts = parallel_state.get_expert_model_parallel_world_size() * here
        replica = (0, parallel_state.get_expert_tensor_parallel_rank(), parallel_state.get_expert_data_parallel_rank())
        return {
            f"{prefix}weight{index}": ShardedTensor.from_rank_offsets(
                f"{prefix}weight",
                weight,
                *sharded_offsets,
                (len(sharded_offsets), first + index, experts),
                replica_id=replica,
                prepend_axis_num=len(sharded_offsets) + 1,
            )
            for index, weight in enumerate(self.parameters())
        }


def _weights(linear: Any) -> list[Any]:
    """The matrices of a linear layer: one, or one for each expert."""
    if isinstance(linear, TEGroupedLinear):
        return [getattr(linear, f"weight{index}") for index in range(linear.num_gemms)]
    return [linear.weight]
