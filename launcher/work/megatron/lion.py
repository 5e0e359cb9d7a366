"""Lion: steps of the sign of a momentum, one state for each weight.

Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675, algorithm 2. A step moves every
weight by the learning rate, so rates are three to ten times smaller than AdamW's, and decays larger by as much.
"""

from __future__ import annotations

from typing import Any

import torch


class Lion(torch.optim.Optimizer):  # type: ignore[misc]
    """Weights of any shape, each number by itself; so parts of a weight may lie on different ranks."""

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": 0.0})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        """One step along the gradients that are there."""
        for group in self.param_groups:
            rate, (of_step, of_momentum) = group["lr"], group["betas"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                momentum = state["exp_avg"]
                direction = torch.lerp(parameter.grad, momentum, of_step).sign_()
                parameter.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-rate)
                momentum.lerp_(parameter.grad, 1 - of_momentum)
