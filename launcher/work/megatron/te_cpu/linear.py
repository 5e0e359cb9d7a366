"""Linear layers, norms and grouped (per expert) linear layers with Transformer Engine's sharding, in plain torch.

Shapes are Megatron's: activations [sequence, batch, hidden]. A "column" layer holds a slice of the outputs and takes
the whole input; a "row" layer holds a slice of the inputs and its partial results are summed over the group. With
sequence parallelism activations between such layers are split along the sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

Initialiser = Callable[[Any], Any]


def group_size(group: Any) -> int:
    """Ranks in a process group; 1 where there is none."""
    return dist.get_world_size(group) if group is not None and dist.is_initialized() else 1


class TransformerEngineBaseModule(nn.Module):  # type: ignore[misc]
    """What Megatron-core reads from every Transformer Engine module."""

    fp8 = False
    fp8_calibration = False

    def __init__(self) -> None:
        super().__init__()
        self.fp8_meta: dict[str, Any] = {"fp8_checkpoint": False, "fp8": False}

    def set_tensor_parallel_group(self, group: Any) -> None:
        self.tp_group = group

    def init_fp8_metadata(self, *_: object, **__: object) -> None:
        return None

    def need_backward_dw(self) -> bool:
        return False

    def backward_dw(self) -> None:
        return None


class _Sharded(TransformerEngineBaseModule):
    """Weights of one linear layer (or of one per expert) and the collectives around them."""

    def _make_weights(
        self,
        in_features: int,
        out_features: int,
        *,
        sequence_parallel: bool,
        tp_group: Any,
        tp_size: int,
        init_method: Initialiser | None,
        bias: bool,
        return_bias: bool,
        parallel_mode: str | None,
        params_dtype: Any,
        device: Any,
        suffixes: list[str],
    ) -> None:
        self.tp_group = tp_group
        self.tp_size = group_size(tp_group) if tp_group is not None else tp_size
        self.parallel_mode = parallel_mode
        self.sequence_parallel = bool(sequence_parallel) and self.tp_size > 1
        self.use_bias = bias
        self.return_bias = return_bias
        self.apply_bias = bias and not return_bias
        if parallel_mode == "column":
            out_features //= self.tp_size
        elif parallel_mode == "row":
            in_features //= self.tp_size
        self.in_features, self.out_features = in_features, out_features
        place: dict[str, Any] = {"device": device or "cpu", "dtype": params_dtype or torch.get_default_dtype()}
        for suffix in suffixes:
            weight = nn.Parameter(torch.empty(out_features, in_features, **place))
            if init_method is not None and weight.device.type != "meta":
                with torch.no_grad():
                    init_method(weight)
            self.register_parameter(f"weight{suffix}", weight)
            # Like the original, weights count as tensor parallel in every mode: experts that lie on tensor-parallel
            # ranks but are not split would otherwise drop out of the gradient norm.
            _mark(weight, 1 if parallel_mode == "row" else 0)
            if not bias:
                setattr(self, f"bias{suffix}", None)
                continue
            offset = nn.Parameter(torch.zeros(out_features, **place))
            self.register_parameter(f"bias{suffix}", offset)
            _mark(offset, 0 if parallel_mode == "column" else None)
            if parallel_mode == "row":
                offset.sequence_parallel = self.sequence_parallel

    def _gathered(self, tokens: Any) -> Any:
        """The whole input of a column layer."""
        if self.parallel_mode != "column" or self.tp_size == 1:
            return tokens
        mappings = _mappings()
        if self.sequence_parallel:
            return mappings.gather_from_sequence_parallel_region(tokens, group=self.tp_group)
        return mappings.copy_to_tensor_model_parallel_region(tokens, group=self.tp_group)

    def _finished(self, out: Any) -> Any:
        """The summed output of a row layer, with the bias added or handed on."""
        if self.parallel_mode == "row" and self.tp_size > 1:
            mappings = _mappings()
            if self.sequence_parallel:
                out = mappings.reduce_scatter_to_sequence_parallel_region(out, group=self.tp_group)
            else:
                out = mappings.reduce_from_tensor_model_parallel_region(out, group=self.tp_group)
        if self.apply_bias:
            out = out + self.bias
        return (out, self.bias) if self.return_bias else out


class Linear(_Sharded):
    """y = x W^T (+ b)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        init_method: Initialiser | None = None,
        bias: bool = True,
        return_bias: bool = False,
        parallel_mode: str | None = None,
        params_dtype: Any = None,
        device: Any = None,
        **_: object,
    ) -> None:
        super().__init__()
        self._make_weights(
            in_features,
            out_features,
            sequence_parallel=sequence_parallel,
            tp_group=tp_group,
            tp_size=tp_size,
            init_method=init_method,
            bias=bias,
            return_bias=return_bias,
            parallel_mode=parallel_mode,
            params_dtype=params_dtype,
            device=device,
            suffixes=[""],
        )

    def forward(self, tokens: Any, **_: object) -> Any:
        return self._finished(F.linear(self._gathered(tokens), self.weight))


class LayerNormLinear(_Sharded):
    """A norm followed by a column layer; can also return the normed input, which adapters need."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        init_method: Initialiser | None = None,
        bias: bool = True,
        normalization: str = "LayerNorm",
        return_bias: bool = False,
        parallel_mode: str | None = None,
        return_layernorm_output: bool = False,
        return_layernorm_output_gathered: bool = False,
        params_dtype: Any = None,
        device: Any = None,
        zero_centered_gamma: bool = False,
        **_: object,
    ) -> None:
        super().__init__()
        self.eps, self.normalization, self.zero_centered_gamma = eps, normalization, zero_centered_gamma
        self.return_layernorm_output = return_layernorm_output
        self.return_layernorm_output_gathered = return_layernorm_output_gathered
        place: dict[str, Any] = {"device": device or "cpu", "dtype": params_dtype or torch.get_default_dtype()}
        ones = torch.zeros if zero_centered_gamma else torch.ones
        self.layer_norm_weight = nn.Parameter(ones(in_features, **place))
        self.layer_norm_bias = nn.Parameter(torch.zeros(in_features, **place)) if normalization == "LayerNorm" else None
        self._make_weights(
            in_features,
            out_features,
            sequence_parallel=sequence_parallel,
            tp_group=tp_group,
            tp_size=tp_size,
            init_method=init_method,
            bias=bias,
            return_bias=return_bias,
            parallel_mode=parallel_mode,
            params_dtype=params_dtype,
            device=device,
            suffixes=[""],
        )
        for parameter in (self.layer_norm_weight, self.layer_norm_bias):
            if parameter is not None:
                parameter.sequence_parallel = self.sequence_parallel

    def forward(self, tokens: Any, **_: object) -> Any:
        normed = normalise(
            tokens,
            self.layer_norm_weight,
            self.layer_norm_bias,
            eps=self.eps,
            kind=self.normalization,
            zero_centered=self.zero_centered_gamma,
        )
        whole = self._gathered(normed)
        out = self._finished(F.linear(whole, self.weight))
        if not self.return_layernorm_output:
            return out
        handed = whole if self.return_layernorm_output_gathered else normed
        return (*out, handed) if isinstance(out, tuple) else (out, handed)


class GroupedLinear(_Sharded):
    """One linear layer per local expert; `m_splits` says how many rows belong to each."""

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        sequence_parallel: bool = False,
        tp_group: Any = None,
        tp_size: int = 1,
        init_method: Initialiser | None = None,
        bias: bool = True,
        return_bias: bool = False,
        parallel_mode: str | None = None,
        params_dtype: Any = None,
        device: Any = None,
        **_: object,
    ) -> None:
        super().__init__()
        self.num_gemms = num_gemms
        self._make_weights(
            in_features,
            out_features,
            sequence_parallel=sequence_parallel,
            tp_group=tp_group,
            tp_size=tp_size,
            init_method=init_method,
            bias=bias,
            return_bias=return_bias,
            parallel_mode=parallel_mode,
            params_dtype=params_dtype,
            device=device,
            suffixes=[str(index) for index in range(num_gemms)],
        )

    def get_extra_state(self) -> Any:
        """Empty; Megatron-core's sharded state of a grouped layer asks for it."""
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        return None

    def forward(self, tokens: Any, m_splits: Any, **_: object) -> Any:
        rows = tokens.reshape(-1, tokens.shape[-1])
        outs, start = [], 0
        for index, count in enumerate(m_splits):
            end = start + int(count)
            bias = getattr(self, f"bias{index}") if self.apply_bias else None
            outs.append(F.linear(rows[start:end], getattr(self, f"weight{index}"), bias))
            start = end
        out = torch.cat(outs).reshape(*tokens.shape[:-1], self.out_features)
        if self.return_bias:
            return out, [getattr(self, f"bias{index}") for index in range(self.num_gemms)]
        return out


class _Norm(TransformerEngineBaseModule):
    kind = ""

    def __init__(
        self,
        hidden_size: int | None = None,
        eps: float = 1e-5,
        sequence_parallel: bool = False,
        params_dtype: Any = None,
        zero_centered_gamma: bool = False,
        device: Any = None,
        normalized_shape: int | None = None,
        **_: object,
    ) -> None:
        super().__init__()
        size = hidden_size if hidden_size is not None else normalized_shape
        self.eps, self.zero_centered_gamma, self.hidden_size = eps, zero_centered_gamma, size
        place: dict[str, Any] = {"device": device or "cpu", "dtype": params_dtype or torch.get_default_dtype()}
        self.weight = nn.Parameter((torch.zeros if zero_centered_gamma else torch.ones)(size, **place))
        self.bias = nn.Parameter(torch.zeros(size, **place)) if self.kind == "LayerNorm" else None
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                parameter.sequence_parallel = sequence_parallel

    def forward(self, tokens: Any) -> Any:
        return normalise(
            tokens, self.weight, self.bias, eps=self.eps, kind=self.kind, zero_centered=self.zero_centered_gamma
        )


class LayerNorm(_Norm):
    kind = "LayerNorm"


class RMSNorm(_Norm):
    kind = "RMSNorm"


def normalise(tokens: Any, weight: Any, bias: Any, *, eps: float, kind: str, zero_centered: bool) -> Any:
    """RMSNorm or LayerNorm over the last dimension, computed in fp32 and returned in the input's type."""
    scale = (weight + 1 if zero_centered else weight).float()
    wide = tokens.float()
    if kind == "RMSNorm":
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * scale
    else:
        normed = F.layer_norm(wide, (wide.shape[-1],), scale, None if bias is None else bias.float(), eps)
    return normed.to(tokens.dtype)


def _mappings() -> Any:
    """Imported late: Megatron-core looks for Transformer Engine once, when it is first imported."""
    from megatron.core.tensor_parallel import mappings

    return mappings


def _mark(parameter: Any, dimension: int | None) -> None:
    """Megatron-core's marks of a tensor-parallel parameter."""
    parameter.tensor_model_parallel = dimension is not None
    parameter.partition_dim = -1 if dimension is None else dimension
    parameter.partition_stride = 1
