"""Attention with context parallelism in plain torch.

Under context parallelism of size c each rank holds chunks r and 2c-1-r of the 2c chunks of a sequence (so that causal
work is balanced). Keys and values are gathered, queries stay where they are.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from launcher.work.megatron.sequences import held_positions
from launcher.work.megatron.te_cpu.linear import TransformerEngineBaseModule, group_size


class _Gathered(torch.autograd.Function):  # type: ignore[misc]
    """All ranks' tensors stacked in front; the gradient is summed over ranks and the own part kept."""

    @staticmethod
    def forward(ctx: Any, own: Any, group: Any) -> Any:
        ctx.group = group
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.group)
        return gradient[dist.get_rank(ctx.group)], None


class DotProductAttention(TransformerEngineBaseModule):
    """softmax(Q K^T * scale) V for [sequence, batch, heads, channels]; K and V may have fewer heads.

    With a learnable softmax every head has one more score, its sink (`softmax_offset`, [heads of this rank]), that
    takes its share of the weights and adds nothing.
    """

    def __init__(
        self,
        num_attention_heads: int,
        kv_channels: int | tuple[int, int],
        attention_dropout: float = 0.0,
        attn_mask_type: str = "causal",
        cp_group: Any = None,
        softmax_scale: float | None = None,
        window_size: tuple[int, int] | None = None,
        softmax_type: str = "vanilla",
        tp_size: int = 1,
        **_: object,
    ) -> None:
        super().__init__()
        if softmax_type not in ("vanilla", "learnable"):
            raise NotImplementedError(f"softmax {softmax_type!r} needs the real Transformer Engine")
        self.softmax_offset = (
            nn.Parameter(torch.empty(num_attention_heads // tp_size)) if softmax_type == "learnable" else None
        )
        channels = kv_channels if isinstance(kv_channels, int) else kv_channels[0]
        self.scale = softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(channels)
        self.dropout = attention_dropout
        self.attn_mask_type = attn_mask_type
        self.window_size = window_size
        self.cp_group = cp_group

    def set_context_parallel_group(self, group: Any, *_: object) -> None:
        self.cp_group = group

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        attention_mask: Any = None,
        qkv_format: str = "sbhd",
        attn_mask_type: str | None = None,
        cu_seqlens_q: Any = None,
        **_: object,
    ) -> Any:
        if qkv_format == "thd":
            return self._packed(query, key, value, cu_seqlens_q.tolist(), attn_mask_type or self.attn_mask_type)
        if qkv_format != "sbhd":
            raise NotImplementedError(f"attention layout {qkv_format!r} needs the real Transformer Engine")
        kind = attn_mask_type or self.attn_mask_type
        causal = "causal" in kind
        length, batch = query.shape[:2]
        ranks = group_size(self.cp_group)
        if ranks > 1:
            key, value = self._whole_sequence(key, ranks), self._whole_sequence(value, ranks)
            half, rank = length // 2, dist.get_rank(self.cp_group)
            late = (2 * ranks - 1 - rank) * half
            own = torch.cat([torch.arange(half) + rank * half, torch.arange(half) + late])
        else:
            own = torch.arange(length) + key.shape[0] - length
        mask = None
        windowed = self.window_size is not None and self.window_size[0] >= 0
        if causal and (ranks > 1 or windowed or key.shape[0] != length or self.softmax_offset is not None):
            every = torch.arange(key.shape[0])
            mask = own[:, None] >= every[None]
            if windowed and self.window_size is not None:
                mask &= every[None] >= own[:, None] - self.window_size[0]
        elif not causal and attention_mask is not None and kind in ("arbitrary", "padding"):
            mask = ~attention_mask
        repeats = query.shape[2] // key.shape[2]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 2), value.repeat_interleave(repeats, 2)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = self._attend(query, key, value, mask, causal=causal)
        return out.permute(2, 0, 1, 3).reshape(length, batch, -1)

    def _packed(self, query: Any, key: Any, value: Any, bounds: list[int], kind: str) -> Any:
        """Sequences behind each other, [tokens, heads, channels]: each sees itself alone."""
        ends = bounds[1:]
        ranks = group_size(self.cp_group)
        if "causal" not in kind:
            raise NotImplementedError(f"attention {kind!r} over packed sequences needs the real Transformer Engine")
        positions = torch.arange(ends[-1])
        if ranks > 1:
            key, value = self._whole_row(key, ends, ranks), self._whole_row(value, ends, ranks)
            positions = held_positions(ends, dist.get_rank(self.cp_group), ranks)
        repeats = query.shape[1] // key.shape[1]
        if repeats > 1:
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        tokens = query.shape[0]
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
        parts = []
        for start, end in itertools.pairwise(bounds):
            own = slice(start // ranks, end // ranks)
            every = torch.arange(start, end)
            mask = positions[own][:, None] >= every[None]
            if self.window_size is not None and self.window_size[0] >= 0:
                mask &= every[None] >= positions[own][:, None] - self.window_size[0]
            parts.append(self._attend(query[:, own], key[:, start:end], value[:, start:end], mask).transpose(0, 1))
        return torch.cat(parts).reshape(tokens, -1)

    def _attend(self, query: Any, key: Any, value: Any, mask: Any, *, causal: bool = False) -> Any:
        """Attention of [..., heads, tokens, channels]; `causal` says what a missing mask means."""
        dropout = self.dropout if self.training else 0.0
        if self.softmax_offset is None:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=mask,
                is_causal=causal and mask is None,
                scale=self.scale,
                dropout_p=dropout,
            )
        scores = (query @ key.transpose(-1, -2)).float() * self.scale
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        sinks = self.softmax_offset.float()[:, None, None].expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1].to(value.dtype)
        return F.dropout(weights, dropout) @ value

    def _whole_row(self, own: Any, ends: list[int], ranks: int) -> Any:
        """Keys or values of all ranks, back in the order of the row."""
        gathered = _Gathered.apply(own, self.cp_group).flatten(0, 1)
        places = torch.cat([held_positions(ends, rank, ranks) for rank in range(ranks)])
        return gathered[torch.argsort(places)]

    def _whole_sequence(self, own: Any, ranks: int) -> Any:
        """Keys or values of all ranks, back in the order of the sequence."""
        parts = _Gathered.apply(own, self.cp_group).view(ranks, 2, own.shape[0] // 2, *own.shape[1:])
        early = [parts[rank, 0] for rank in range(ranks)]
        late = [parts[rank, 1] for rank in reversed(range(ranks))]
        return torch.cat(early + late)
