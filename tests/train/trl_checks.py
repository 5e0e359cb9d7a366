"""Losses against TRL's on the same batch: trl_checks.py MODEL (in the train environment, with TRL on the path).

Our side makes the batch from rows, as training does, and its losses from the model's log-probabilities. TRL's side is
its trainers' own code, on the same tokens and the same model, without the trainers' data loading and logging around.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from launcher.work.data import Problem
from launcher.work.megatron import losses, objective, process
from launcher.work.megatron.objective import Preference
from launcher.work.megatron.pairs import PairBatches, tokenise_pairs

TRAIN: dict[str, Any] = {"seed": 5, "global_batch_size": 6, "micro_batch_size": 6, "sequence_length": 64}
ROWS = [
    Problem(f"r{number}", ({"role": "user", "content": f"{number} + 5?"},), str(number + 5), rejected="maybe " * number,
            wanted=bool(number % 2))
    for number in range(1, 7)
]  # fmt: skip
TOLERANCE = 1e-5


def main(folder: str) -> None:
    objective.over_context = lambda values: values
    objective.first_of_context = lambda: True
    process.prepare()  # batches go to the device, which is the CPU here
    check = Checks(folder)
    for beta in (0.1, 0.7):
        for smoothing in (0.0, 0.2):
            check.cpo(beta, smoothing, 1.0)
            check.simpo(beta, 0.5, smoothing, 0.0)
            check.simpo(beta, 0.5, smoothing, 1.0)
        check.orpo(beta)
        for loss in ("sigmoid", "ipo", "sigmoid_norm"):
            check.dpo(beta, loss, 0.0)
        check.dpo(beta, "sigmoid", 0.5)
        check.kto(beta)
    check.conservative(0.3)
    check.reward(0.0, 0.0)
    check.reward(0.0, 0.01)
    print("equal")


class Checks:
    """One batch of pairs and one of verdicts, a model and a reference that differs from it."""

    def __init__(self, folder: str) -> None:
        torch.manual_seed(3)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
        self.batches = {method: self._batches(method) for method in ("dpo", "orpo", "cpo", "simpo", "kto", "rm")}
        other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for parameter in other.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        self.logs, self.reference = (self._log_probabilities(model, "dpo") for model in (self.model, other))
        self.kto_logs, self.kto_reference = (self._log_probabilities(model, "kto") for model in (self.model, other))

    def _batches(self, method: str) -> PairBatches:
        pairs = tokenise_pairs(ROWS, self.tokenizer, method=method, sequence_length=64, seed=5, padding=0)
        assert len(pairs) == len(ROWS)
        place = {"padding": 0, "replica": 0, "replicas": 1, "context_rank": 0, "context_ranks": 1}
        return PairBatches(pairs, TRAIN, single=method == "kto", **place)

    def _log_probabilities(self, model: Any, method: str) -> Any:
        """Of first and second sequences, [sequences, tokens], zero where a token does not count."""
        (batch,) = self.batches[method].taken(self.batches[method].of_step(0))
        with torch.no_grad():
            values = functional.cross_entropy(
                model(batch.tokens).logits.transpose(1, 2), batch.labels, reduction="none"
            )
        return -values * batch.loss_mask

    def ours(self, method: str, settings: dict[str, Any]) -> tuple[float, dict[str, float]]:
        """Loss and figures by our objective."""
        batches = self.batches[method]
        base = (self.kto_reference if method == "kto" else self.reference).sum(1)
        reference = SimpleNamespace(
            begin=lambda pairs: None,
            first=lambda indices, like: base[: len(indices)],
            first_and_second=lambda indices, like: base,
            kl=(self.kto_logs - self.kto_reference).sum(1)[len(ROWS) :].mean().clamp(min=0),
        )
        preference = Preference(method, settings, batches, reference)  # type: ignore[arg-type]
        (batch,) = preference.begin(0)()
        with torch.no_grad():
            if method == "rm":
                hidden = self.scorer.model(batch.tokens).last_hidden_state
                out = self.scorer.score(hidden)
            else:
                logits = self.model(batch.tokens).logits
                out = functional.cross_entropy(logits.transpose(1, 2), batch.labels, reduction="none")
            _, count, told = preference.loss(batch, out)
        values = told.tolist()
        half = len(preference.figures)
        figures = zip(preference.figures, values[2 : 2 + half], values[2 + half :], strict=True)
        return values[0] / int(count), {name: total / times for name, total, times in figures}

    def theirs(self, trainer: Any, method: str, **settings: Any) -> tuple[float, dict[str, float]]:
        """Loss and metrics by TRL's older trainers, which share their form."""
        halves: dict[str, Any] = {}
        for name, samples in zip(("chosen", "rejected"), self._sides(method), strict=True):
            width = max(len(sample.tokens) for sample in samples)
            tokens = torch.zeros(len(samples), width, dtype=torch.long)
            labels = torch.full_like(tokens, -100)
            mask = torch.zeros_like(tokens)
            for row, sample in enumerate(samples):
                length = len(sample.tokens)
                tokens[row, :length] = torch.tensor(sample.tokens)
                mask[row, :length] = 1
                labels[row, :length] = tokens[row, :length].where(torch.tensor(sample.trained), -100)
            halves |= {f"{name}_input_ids": tokens, f"{name}_labels": labels, f"{name}_attention_mask": mask}
        fake = SimpleNamespace(
            is_encoder_decoder=False, pad_token_id=0, padding_value=0, aux_loss_enabled=False, alpha=0.0,
            accelerator=accelerator(), concatenated_inputs=trainer.concatenated_inputs,
            get_batch_logps=trainer.get_batch_logps, **settings,
        )  # fmt: skip
        for name in ("cpo_loss", "odds_ratio_loss", "concatenated_forward"):
            if hasattr(trainer, name):
                setattr(fake, name, getattr(trainer, name).__get__(fake))
        with torch.no_grad():
            loss, metrics = trainer.get_batch_loss_metrics(fake, self.model, halves)
        return float(loss), {name: float(value) for name, value in metrics.items()}

    def _sides(self, method: str) -> tuple[list[Any], list[Any]]:
        pairs = self.batches[method].of_step(0)
        return [pair.first for pair in pairs], [pair.second for pair in pairs]

    def cpo(self, beta: float, smoothing: float, weight: float) -> None:
        ours = self.ours("cpo", {"beta": beta, "label_smoothing": smoothing, "sft_weight": weight})
        settings = {"beta": beta, "label_smoothing": smoothing, "cpo_alpha": weight, "loss_type": "sigmoid"}
        same("cpo", ours, self.theirs(CPOTrainer, "cpo", **settings))

    def simpo(self, beta: float, gamma: float, smoothing: float, weight: float) -> None:
        settings = {"beta": beta, "label_smoothing": smoothing}
        ours = self.ours("simpo", {**settings, "gamma": gamma, "sft_weight": weight})
        more = {"simpo_gamma": gamma, "cpo_alpha": weight, "loss_type": "simpo"}
        same("simpo", ours, self.theirs(CPOTrainer, "simpo", **settings, **more))

    def orpo(self, beta: float) -> None:
        ours = self.ours("orpo", {"beta": beta, "sft_weight": 1.0})
        same("orpo", ours, self.theirs(ORPOTrainer, "orpo", beta=beta))

    def dpo(self, beta: float, loss: str, weight: float) -> None:
        settings = {"beta": beta, "loss": "ipo" if loss == "ipo" else "sigmoid", "sft_weight": weight}
        ours = self.ours("dpo", {**settings, "length_normalization": loss == "sigmoid_norm"})
        (batch,) = self.batches["dpo"].micro(0)
        chosen, rejected = self.reference.sum(1).chunk(2)
        inputs = {
            "input_ids": functional.pad(batch.labels, (1, 0)),
            "completion_mask": functional.pad(batch.loss_mask, (1, 0)).long(),
            "attention_mask": functional.pad(batch.text_mask, (1, 0), value=1.0),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        fake = trainer_with(
            beta=beta, loss_types=[loss, "sft"], loss_weights=[1.0, weight], ld_alpha=None, use_weighting=False,
            f_divergence_type="reverse_kl", label_smoothing=0.0,
        )  # fmt: skip
        same(
            "dpo", ours, (float(DPOTrainer._compute_loss(fake, model_with(self.logs), inputs, False)), metrics_of(fake))
        )

    def conservative(self, smoothing: float) -> None:
        """TRL's DPO has no smoothing any more; CPO's formula is the same one of ratios."""
        ratios = (self.logs - self.reference).sum(1).chunk(2)
        fake = SimpleNamespace(
            alpha=0.0, beta=0.1, loss_type="sigmoid", label_smoothing=smoothing, accelerator=accelerator()
        )
        theirs = CPOTrainer.cpo_loss(fake, *ratios)[0]
        assert torch.allclose(losses.dpo(*ratios, beta=0.1, label_smoothing=smoothing), theirs, atol=TOLERANCE)

    def kto(self, beta: float) -> None:
        weights = {"desirable_weight": 1.3, "undesirable_weight": 0.7}
        ours = self.ours("kto", {"beta": beta, **weights})
        (batch,) = self.batches["kto"].micro(0)
        ones, others = self.kto_logs.chunk(2)
        base, other_base = self.kto_reference.sum(1).chunk(2)
        inputs = {
            "input_ids": functional.pad(batch.labels, (1, 0)),
            "completion_mask": functional.pad(batch.loss_mask, (1, 0)).long(),
            "attention_mask": functional.pad(batch.text_mask, (1, 0), value=1.0),
            "label": batch.wanted,
            "ref_logps": base,
            "ref_KL_logps": other_base,
        }
        fake = trainer_with(
            beta=beta, loss_type="kto", calculate_KL=True, **weights, _compute_kl_logps=lambda *_: others.sum(1)
        )
        same("kto", ours, (float(KTOTrainer._compute_loss(fake, model_with(ones), inputs, False)), metrics_of(fake)))

    def reward(self, margin: float, center: float) -> None:
        ours = self.ours("rm", {"margin": margin, "center_weight": center})
        (batch,) = self.batches["rm"].micro(0)
        fake = trainer_with(args=SimpleNamespace(center_rewards_coefficient=center or None))
        mask = batch.text_mask.long()
        inputs = {"input_ids": batch.tokens, "attention_mask": mask}
        with torch.no_grad():
            theirs = float(RewardTrainer.compute_loss(fake, self.scorer, inputs))
        same("rm", ours, (theirs, {"rewards/accuracies": metrics_of(fake)["accuracy"]}))


def accelerator() -> Any:
    return SimpleNamespace(device="cpu", gather=lambda value: value, gather_for_metrics=lambda value: value)


def trainer_with(**settings: Any) -> Any:
    """What the trainers read of themselves in a loss."""
    return SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), aux_loss_enabled=False,
        precompute_ref_logps=True, _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **settings,
    )  # fmt: skip


def model_with(logs: Any) -> Any:
    """A model whose log-probabilities are known; what trainers only report is zero."""
    zeros = torch.zeros_like(logs)
    out = SimpleNamespace(log_probs=logs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    return lambda **_: out


def metrics_of(fake: Any) -> dict[str, float]:
    return {name: float(values[-1]) for name, values in fake._metrics["train"].items() if isinstance(values, list)}


def same(method: str, ours: tuple[float, dict[str, float]], theirs: tuple[float, dict[str, float]]) -> None:
    assert abs(ours[0] - theirs[0]) < TOLERANCE, (method, ours, theirs)
    both = ours[1].keys() & theirs[1].keys()
    assert both, (method, ours, theirs)
    for name in both:
        assert abs(ours[1][name] - theirs[1][name]) < TOLERANCE * max(1.0, abs(theirs[1][name])), (
            method,
            name,
            ours,
            theirs,
        )


if __name__ == "__main__":
    main(sys.argv[1])
