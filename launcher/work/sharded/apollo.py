"""APOLLO: AdamW whose second moments are of a small random projection of each gradient.

Zhu et al. 2024, "APOLLO: SGD-like Memory, AdamW-level Performance", arXiv:2412.05270, algorithm 1. A matrix of
gradients G, [small, large], is projected to R = P G of `rank` rows; AdamW's update of R says by which factor each
column of G is to be scaled. Its own library may not be used commercially, so this is from the paper.
"""

from __future__ import annotations

import math
from typing import Any

import torch

RANK = 128
RENEWED_EVERY = 200  # steps with one projection
GROWTH = 1.01  # of an update's norm from step to step, at most: section 3.3, "norm-growth limiter"


class Apollo(torch.optim.Optimizer):  # type: ignore[misc]
    """Groups with a key `rank` are projected, others are AdamW's. Projections follow from a seed and the step."""

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float], eps: float, seed: int) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._seed = seed

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: None = None) -> None:
        """One step of all parameters that have a gradient."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                gradient = parameter.grad.float()
                if "rank" in group:
                    update = self._scaled(gradient, group, state, number)
                else:
                    update = _adam(gradient, group, state)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"])

    def _scaled(self, gradient: Any, group: Any, state: Any, number: int) -> Any:
        """The gradient, its channels along the larger side scaled as AdamW would scale their projections."""
        upright = gradient.shape[0] > gradient.shape[1]
        matrix = gradient.T if upright else gradient
        small = self._projection(matrix, group["rank"], state["step"], number) @ matrix
        wanted = _adam(small, group, state)
        matrix = matrix * (wanted.norm(dim=0) / small.norm(dim=0).clamp(min=torch.finfo(small.dtype).tiny))
        norm = matrix.norm()
        if "norm" in state:
            matrix = matrix * (GROWTH * state["norm"] / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(max=1.0)
            norm = matrix.norm()
        state["norm"] = norm
        return matrix.T if upright else matrix

    def _projection(self, matrix: Any, rank: int, step: int, number: int) -> Any:
        """[rank, small side], normal numbers of variance 1 / rank; the same until it is renewed."""
        seed = (self._seed * 1_000_003 + number) * 1_000_003 + (step - 1) // RENEWED_EVERY
        generator = torch.Generator().manual_seed(seed % 2**63)
        rank = min(rank, matrix.shape[0])
        values = torch.randn(rank, matrix.shape[0], generator=generator) / math.sqrt(rank)
        return values.to(matrix.device)


def _adam(gradient: Any, group: Any, state: Any) -> Any:
    """AdamW's direction (Loshchilov and Hutter 2019, arXiv:1711.05101) of a gradient; its moments are in the state."""
    if "first" not in state:
        state["first"], state["second"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    beta1, beta2 = group["betas"]
    first = state["first"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    second = state["second"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (second / (1 - beta2 ** state["step"])).sqrt()
    return first / (1 - beta1 ** state["step"]) / (root + group["eps"])
