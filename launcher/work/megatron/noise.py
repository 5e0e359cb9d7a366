"""NEFTune: noise on the embeddings while training, the same for a sample of a step in every layout.

Jain et al. 2023, "NEFTune: Noisy Embeddings Improve Instruction Finetuning", arXiv:2310.05914: to the embeddings of a
sequence of L tokens, each of d numbers, is added alpha / sqrt(L d) times uniform noise between -1 and 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from launcher.work.megatron.batches import Batch


class Noise:
    """The noise of one run. It is added to the batch that was last taken from `watched`."""

    def __init__(self, alpha: float, *, seed: int, context_ranks: int) -> None:
        self.alpha, self.seed, self.context_ranks = alpha, seed, context_ranks
        self.step = 0
        self.batch: Batch | None = None

    @classmethod
    def wanted(cls, train: Mapping[str, Any], *, context_ranks: int) -> Noise | None:
        """The noise that [train] asks for."""
        alpha = float(train.get("neftune_alpha", 0.0))
        return cls(alpha, seed=int(train["seed"]), context_ranks=context_ranks) if alpha else None

    def attach(self, chunks: Sequence[Any]) -> None:
        """Let the embedding of a Megatron-core model add it, on the ranks that have one."""
        for chunk in chunks:
            if chunk.pre_process:
                chunk.embedding.register_forward_hook(self._add_to_slice)

    def attach_whole(self, embedding: Any) -> None:
        """Let an embedding add it whose output is [sequences, tokens, numbers], of the first tokens at least."""
        embedding.register_forward_hook(self._add_to_rows)

    def watched(self, step: int, micro: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
        """A step's micro-batches, each known here while the model reads it."""
        for self.batch in micro():
            self.step = step
            yield self.batch

    def _add_to_slice(self, embedding: Any, inputs: Any, out: Any) -> Any:
        """`out` is [tokens, sequences, numbers], with sequence parallelism this rank's slice of the tokens."""
        if not embedding.training:
            return out
        from megatron.core import parallel_state

        noise = self._of(self.batch, out.shape[-1]).transpose(0, 1)
        if len(out) < len(noise):
            ranks, rank = len(noise) // len(out), parallel_state.get_tensor_model_parallel_rank()
            noise = noise.chunk(ranks)[rank]
        return out + noise.to(out.dtype)

    def _add_to_rows(self, embedding: Any, inputs: Any, out: Any) -> Any:
        """`out` is [sequences, tokens, numbers]."""
        if not embedding.training:
            return out
        return out + self._of(self.batch, out.shape[-1])[:, : out.shape[1]].to(out.dtype)

    def _of(self, batch: Any, size: int) -> Any:
        """[sequences, tokens, size] in fp32: each token's by its position in its sample, of padding none."""
        positions = batch.positions.flatten()
        ends = [end // self.context_ranks for end in batch.ends]
        if not ends:
            ends = list(range(batch.positions.shape[1], len(positions) + 1, batch.positions.shape[1]))
        noise = torch.zeros(len(positions), size, device=positions.device)
        start = 0
        # behind the samples of a packed row is a sequence of what is left, which has no name and no noise
        for name, length, end in zip(batch.ids, batch.lengths, ends, strict=False):
            own = positions[start:end]
            whole = self._whole(name, length, size, positions.device)
            noise[start:end] = whole[own.clamp(max=length - 1)] * (own < length).unsqueeze(1)
            start = end
        return noise.view(*batch.positions.shape, size)

    def _whole(self, name: str, length: int, size: int, device: Any) -> Any:
        digest = hashlib.sha256(f"{self.seed}:{self.step}:{name}".encode()).digest()
        generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        bound = self.alpha / math.sqrt(length * size)
        return torch.empty(length, size, device=device).uniform_(-bound, bound, generator=generator)
