"""Muon: steps along the nearest orthogonal matrix to the momentum; AdamW for what is no matrix of a hidden layer.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon), with
the scale of Liu et al. 2025, "Muon is Scalable for LLM Training", arXiv:2502.16982: 0.2 sqrt(the longer side), which
gives steps the size of AdamW's, so that its learning rate and decay fit. The same as torch.optim.Muon with
`match_rms_adamw` on the model's matrices as Hugging Face has them.

Q, K and V, and gate and up projections, are one matrix each in Megatron-core and are taken apart here. Of a divided
matrix each tensor-parallel rank gathers the whole momentum, and works out the same step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's, of the quintic that is iterated
ITERATIONS = 5
PARTS = "parts"  # the key of a parameter group that holds matrices


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """`groups` with the key "parts" hold matrices of hidden layers, the others take AdamW.

    A group's "parts" are the relative numbers of rows of the matrices that are one here, "unit" the rows of one share
    where the parts alternate, 0 where each is in one piece; "divided" says whether tensor-parallel ranks, `over`, have
    a slice each.
    """

    def __init__(self, groups: Any, *, lr: float, betas: tuple[float, float], eps: float, over: Any = None) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.over = over
        rest = [group for group in self.param_groups if PARTS not in group]
        self.rest = torch.optim.AdamW(rest, lr=lr, betas=betas, eps=eps) if rest else None
        if self.rest is not None:
            self.rest.state = self.state

    def names_of(self, parameter: Any) -> tuple[str, ...]:
        """The states of one parameter, for checkpoints."""
        matrices = (each for group in self.param_groups if PARTS in group for each in group["params"])
        return ("momentum_buffer",) if any(each is parameter for each in matrices) else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: Any = None) -> None:
        """One step along the gradients that are there. Tensor-parallel ranks call it together."""
        for group in self.param_groups:
            for parameter in group["params"] if PARTS in group else ():
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["betas"][0])
                ahead = torch.lerp(parameter.grad, momentum, group["betas"][0])  # Nesterov's
                # experts are whole: the planner refuses to divide them
                divided = group["divided"] and not group["is_expert_parallel"] and dist.get_world_size(self.over) > 1
                update = self._update(ahead, group[PARTS], group["unit"], parameter.partition_dim if divided else None)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])
        if self.rest is not None:
            self.rest.step()

    def _update(self, momentum: Any, parts: tuple[int, ...], unit: int, axis: int | None) -> Any:
        """The step of the matrices that are one here; of each the slice of this rank, if it is divided by `axis`."""
        unit = unit or len(momentum) // sum(parts)
        shares = momentum.view(-1, unit * sum(parts), momentum.shape[1])
        updates = []
        for part in shares.split([unit * part for part in parts], dim=1):
            mine = part.reshape(-1, momentum.shape[1])
            found = orthogonal(mine) if axis is None else self._of_whole(mine, axis)
            updates.append(found.view(part.shape))
        return torch.cat(updates, dim=1).view_as(momentum)

    def _of_whole(self, mine: Any, axis: int) -> Any:
        size, rank = dist.get_world_size(self.over), dist.get_rank(self.over)
        gathered = [torch.empty_like(mine) for _ in range(size)]
        dist.all_gather(gathered, mine.contiguous(), group=self.over)
        return orthogonal(torch.cat(gathered, dim=axis)).chunk(size, dim=axis)[rank].contiguous()


def orthogonal(matrix: Any) -> Any:
    """U V^T of the matrix U S V^T, [rows, columns], roughly, times 0.2 sqrt(the longer side).

    Newton-Schulz iteration in bf16, which leaves singular values between about 0.7 and 1.2.
    """
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    found = (matrix.T if tall else matrix).bfloat16()
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        squares = found @ found.T
        found = torch.addmm(found, torch.addmm(squares, squares, squares, beta=b, alpha=c), found, beta=a)
    return (found.T if tall else found).to(matrix.dtype) * (0.2 * math.sqrt(max(matrix.shape)))
