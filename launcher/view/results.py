"""What stages measured, read from their results: one line for a stage, one table for the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launcher.plan import Plan, Stage
from launcher.standing import RunStatus
from launcher.units import counted, show_count, show_mib, show_seconds

BEFORE, AFTER, QUANTIZED = "before", "after", "quantized"


@dataclass(frozen=True)
class Comparison:
    """One figure of the model before training, after it, and quantized; "" where it was not measured."""

    name: str
    values: dict[str, str]


def headline(worker: str, metrics: dict[str, Any]) -> str:
    """A finished stage in one line."""
    words: list[str] = []
    if "accuracy" in metrics:
        words.append(f"accuracy {accuracy(metrics)}")
    if metrics.get("perplexity") is not None:
        words.append(f"perplexity {metrics['perplexity']:.2f}")
    if metrics.get("final_loss") is not None:
        words.append(f"loss {metrics['final_loss']:.3f}")
    if metrics.get("validation_loss") is not None:
        words.append(f"validation loss {metrics['validation_loss']:.3f}")
    if metrics.get("validation_accuracy") is not None:
        words.append(f"{metrics['validation_accuracy']:.1%} of held-out pairs right")
    if "steps" in metrics:
        words.append(f"{metrics['steps']} steps")
    if metrics.get("tokens_per_second") is not None:
        words.append(f"{show_count(metrics['tokens_per_second'])} tok/s")
    if metrics.get("mfu") is not None:
        words.append(f"{metrics['mfu']:.0%} MFU")
    if metrics.get("peak_memory_mib") is not None:
        words.append(f"up to {show_mib(metrics['peak_memory_mib'])} a rank")
    if metrics.get("spikes"):
        words.append(counted(metrics["spikes"], "loss spike"))
    if "packing_efficiency" in metrics:
        words.append(f"packed {100 * metrics['packing_efficiency']:.1f} % full")
    if metrics.get("rows_cut"):
        words.append(f"{counted(metrics['rows_cut'], 'row')} cut")
    if metrics.get("rows_left_out"):
        words.append(f"{counted(metrics['rows_left_out'], 'row')} left out")
    if "size_mib" in metrics:
        words.append(show_mib(metrics["size_mib"]))
    if "parameters" in metrics:
        words.append(f"{show_count(metrics['parameters'])} parameters")
    if "size_mib_after" in metrics:
        bits = f" at {metrics['bits']} bit" if metrics.get("bits") else ""
        words.append(f"{show_mib(metrics.get('size_mib_before', 0))} -> {show_mib(metrics['size_mib_after'])}{bits}")
    if worker == "choose":
        words.append(f"point {metrics['point']} with {metrics['value']:.6g}, of {metrics['points']}")
    if worker == "serve" and "seconds_to_answer" in metrics:
        words.append(f"answered in {show_seconds(metrics['seconds_to_answer'])}")
    return ", ".join(words)


def accuracy(metrics: dict[str, Any]) -> str:
    """A share in percent with its standard error: "62.5 ± 6.1 %"."""
    error = metrics.get("accuracy_stderr")
    spread = f" ± {100 * error:.1f}" if error is not None else ""
    return f"{100 * metrics['accuracy']:.1f}{spread} %"


def comparisons(status: RunStatus, plan: Plan) -> list[Comparison]:
    """Accuracy, perplexity and size, as far as they were measured."""
    accuracies: dict[str, str] = {}
    perplexities: dict[str, str] = {}
    sizes: dict[str, str] = {}
    problems: set[int] = set()
    for stage in status.stages:
        metrics = stage.result.get("metrics", {}) if stage.result else {}
        subject = _subject(plan.stage(stage.name))
        if "accuracy" in metrics:
            accuracies[subject] = accuracy(metrics)
            problems.add(metrics.get("problems", 0))
        if metrics.get("perplexity") is not None:
            perplexities[subject] = f"{metrics['perplexity']:.2f}"
        if "size_mib" in metrics:
            sizes[AFTER] = show_mib(metrics["size_mib"])
        if "size_mib_after" in metrics:
            sizes[QUANTIZED] = show_mib(metrics["size_mib_after"])
    count = f" ({problems.pop()} problems)" if len(problems) == 1 and 0 not in problems else ""
    rows = [(f"accuracy{count}", accuracies), ("perplexity", perplexities), ("size", sizes)]
    return [Comparison(name, values) for name, values in rows if values]


def _subject(stage: Stage) -> str:
    """Which model a stage measured: the one it was given, or for quantize the one it made."""
    if stage.worker == "quantize":
        return QUANTIZED
    source = stage.options.get("model", {}).get("artifact_of")
    if source is None:
        return BEFORE
    return QUANTIZED if source == "quantize" else AFTER
