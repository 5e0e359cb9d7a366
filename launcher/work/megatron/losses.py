"""Losses of preference methods as pure functions of log-probabilities, one value for each pair or answer.

A log-probability is that of a whole answer given its prompt: the sum over the answer's tokens, or where a docstring
says "mean" their mean, so that long answers do not count for more. All arguments are tensors of one value a pair
unless typed as numbers. Nothing here knows of ranks or batches; sums and means over them are the caller's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def dpo(chosen: Any, rejected: Any, *, beta: float, label_smoothing: float = 0.0) -> Any:
    """-log sigmoid(beta * (chosen - rejected)) of the ratios log p(answer) - log p_reference(answer).

    Rafailov et al. 2023, "Direct Preference Optimization", arXiv:2305.18290, equation 7. With label smoothing e, the
    share of pairs that are thought to be the wrong way round, the two directions are weighted 1 - e and e
    (conservative DPO, Mitchell 2023, "A note on DPO with noisy preferences"). Of the ratios divided by the answers'
    lengths it is the length-normalised form (Lambert et al. 2024, "Tulu 3", arXiv:2411.15124).
    """
    margin = beta * (chosen - rejected)
    return -F.logsigmoid(margin) * (1 - label_smoothing) - F.logsigmoid(-margin) * label_smoothing


def ipo(chosen: Any, rejected: Any, *, beta: float) -> Any:
    """(chosen - rejected - 1 / (2 beta))^2 of the mean ratios log p - log p_reference.

    Azar et al. 2023, "A General Theoretical Paradigm to Understand Learning from Human Preferences",
    arXiv:2310.12036, equation 17, whose tau is beta. Means instead of sums are what its authors used.
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def simpo(chosen: Any, rejected: Any, *, beta: float, gamma: float, label_smoothing: float = 0.0) -> Any:
    """-log sigmoid(beta * (chosen - rejected) - gamma) of mean log-probabilities; there is no reference.

    Meng et al. 2024, "SimPO: Simple Preference Optimization with a Reference-Free Reward", arXiv:2405.14734,
    equation 6. gamma is the margin by which the chosen answer should win.
    """
    margin = beta * (chosen - rejected) - gamma
    return -F.logsigmoid(margin) * (1 - label_smoothing) - F.logsigmoid(-margin) * label_smoothing


def cpo(chosen: Any, rejected: Any, *, beta: float, label_smoothing: float = 0.0) -> Any:
    """-log sigmoid(beta * (chosen - rejected)) of log-probabilities, without a reference.

    Xu et al. 2024, "Contrastive Preference Optimization", arXiv:2401.08417, equation 3. The method adds the chosen
    answer's negative log-likelihood (equation 4), which is the caller's.
    """
    margin = beta * (chosen - rejected)
    return -F.logsigmoid(margin) * (1 - label_smoothing) - F.logsigmoid(-margin) * label_smoothing


def orpo(chosen: Any, rejected: Any, *, beta: float) -> Any:
    """-beta * log sigmoid(log odds(chosen) - log odds(rejected)), odds = p / (1 - p), of mean log-probabilities.

    Hong et al. 2024, "ORPO: Monolithic Preference Optimization without Reference Model", arXiv:2403.07691,
    equations 6 and 7, whose lambda is beta. The method adds the negative log-likelihood of the chosen text, which is
    the caller's.
    """
    odds = (chosen - rejected) - (_log_of_rest(chosen) - _log_of_rest(rejected))
    return -beta * F.logsigmoid(odds)


def kto(ratio: Any, wanted: Any, kl: Any, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Any:
    """weight * (1 - sigmoid(beta * (ratio - kl))) of wanted answers; ratio and kl change places for the others.

    Ethayarajh et al. 2024, "KTO: Model Alignment as Prospect Theoretic Optimization", arXiv:2402.01306, section 4.
    `ratio` is log p - log p_reference; `kl`, the reference point, is one number without a gradient: how far the
    policy is from the reference over answers to other prompts, never below 0 (the caller's estimate).
    """
    side = torch.where(wanted, 1.0, -1.0)
    weight = torch.where(wanted, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(beta * side * (ratio - kl)))


def bradley_terry(chosen: Any, rejected: Any, *, margin: float = 0.0, center_weight: float = 0.0) -> Any:
    """-log sigmoid(chosen - rejected - margin) of scores, which is the likelihood of the verdict under Bradley-Terry.

    Ouyang et al. 2022, "Training language models to follow instructions with human feedback", arXiv:2203.02155,
    equation 1; the margin is that of Touvron et al. 2023, "Llama 2", arXiv:2307.09288, equation 2.
    center_weight * (chosen + rejected)^2 keeps scores near 0, of which the loss sees differences only (Eisenstein et
    al. 2023, "Helping or Herding?", arXiv:2312.09244).
    """
    return -F.logsigmoid(chosen - rejected - margin) + center_weight * (chosen + rejected) ** 2


def _log_of_rest(value: Any) -> Any:
    """log(1 - exp(value)) for value < 0, exact at both ends.

    Maechler 2012, "Accurately Computing log(1 - exp(-|a|))": expm1 near 0, log1p far from it.
    """
    near = value > -0.6931471805599453
    # each branch is fed what it can bear: a NaN in the one that is not taken would reach the gradient
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, value, -0.5))),
        torch.log1p(-torch.exp(torch.where(near, -1.0, value))),
    )
