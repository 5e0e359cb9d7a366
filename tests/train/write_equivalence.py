"""Trains every cell and writes docs/equivalence.md: `make equivalence`, 23 minutes on two cores.

`--models`, `--tuners` and `--methods` choose some of them; the page is written for all alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import tests.conftest  # noqa: F401 - it names the environments
from tests.train.conftest import HERE, Run, train_python
from tests.train.equivalence import (
    ALONE,
    BATCH,
    LAYOUTS,
    LENGTH,
    LOSS,
    METHODS,
    METHODS_ALIKE,
    MICRO_BATCH,
    MODELS,
    NORM,
    ROWS,
    STEPS,
    TUNERS,
    Cell,
    Difference,
    difference,
    layouts_of,
    refusal,
    train,
)

PAGE = HERE.parents[1] / "docs/equivalence.md"
MODEL_NAMES = {
    "llama": "Llama-like (embeddings tied to the output)",
    "qwen3": "Qwen3-like (norms of queries and keys)",
    "moe": "Qwen3-MoE-like (4 experts, 2 for a token)",
}
Outcome = Difference | str  # a text says why there is no difference to tell


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.train.write_equivalence")
    methods = METHODS | METHODS_ALIKE
    for name, possible in (("models", MODELS), ("tuners", TUNERS), ("methods", methods)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(possible), default=list(possible))
    chosen = parser.parse_args(arguments)
    found: dict[Cell, Outcome] = {}
    curves: dict[Cell, tuple[float, float]] = {}
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="swiftlaunch-equivalence-") as folder:
        for model, tuner in product(chosen.models, chosen.tuners):
            runs = trained(model, tuner, chosen.methods, Path(folder))
            for cell, run in runs.items():
                if cell.layout == ALONE and isinstance(run, Run):
                    curves[cell] = run.losses()[0], run.losses()[-1]
                    versions = run.result()["artifacts"]["lineage"]["versions"]
                else:
                    found[cell] = judged(run, runs[cell.alone])
            part = [found[cell] for cell in found if (cell.model, cell.tuner) == (model, tuner)]
            print("\n".join(table(model, tuner, chosen.methods, found, curves)), flush=True)
            print(f"{sum(map(equal, part))} of {len(part)} cells are equal\n", flush=True)
    if len(found) == len(methods) * sum(len(layouts_of(*pair)) - 1 for pair in product(MODELS, TUNERS)):
        PAGE.write_text(page(found, curves, versions), encoding="utf-8")
    return 0 if all(map(equal, found.values())) else 1


def trained(model: str, tuner: str, methods: Sequence[str], folder: Path) -> dict[Cell, Run | str]:
    """All runs of a model and a tuner; a text instead where they did not come to their end."""
    runs: dict[Cell, Run | str] = {}
    for ranks in sorted({LAYOUTS[layout].ranks for layout in layouts_of(model, tuner)}):
        layouts = [layout for layout in layouts_of(model, tuner) if LAYOUTS[layout].ranks == ranks]
        cells = [Cell(model, tuner, method, layout) for layout, method in product(layouts, methods)]
        started = time.monotonic()
        try:
            runs |= train(cells, folder / f"{model}-{tuner}-{ranks}", lambda kind: made(kind, folder))
        except AssertionError as error:
            print(error, file=sys.stderr)
            runs |= dict.fromkeys(cells, "failed")
        seconds = time.monotonic() - started
        print(f"{model}, {tuner}, {ranks} ranks: {len(cells)} runs in {seconds:.0f} s", file=sys.stderr, flush=True)
    return runs


def made(kind: str, folder: Path) -> Path:
    """The folder of a tiny model."""
    model = folder / "models" / kind
    if not model.exists():
        model.parent.mkdir(exist_ok=True)
        subprocess.run([train_python(), str(HERE / "make_model.py"), str(model), kind], check=True, timeout=120)
    return model


def judged(run: Run | str, alone: Run | str) -> Outcome:
    if isinstance(run, str) or isinstance(alone, str):
        return "failed"
    return difference(run, alone)


def equal(found: Outcome) -> bool:
    return isinstance(found, Difference) and found.equal


def table(
    model: str,
    tuner: str,
    methods: Sequence[str],
    found: dict[Cell, Outcome],
    curves: dict[Cell, tuple[float, float]],
) -> Iterator[str]:
    """One line a method: the loss of one process, and the differences of each layout."""
    layouts = [layout for layout in layouts_of(model, tuner) if layout != ALONE]
    yield "| method | loss | " + " | ".join(layouts) + " |"
    yield "|---|---|" + "---|" * len(layouts)
    for method in methods:
        first, last = curves.get(Cell(model, tuner, method, ALONE), (0.0, 0.0))
        cells = [found[Cell(model, tuner, method, layout)] for layout in layouts]
        words = [str(each) if equal(each) else f"**{each}**" for each in cells]
        yield f"| {method} | {first:.2f} to {last:.2f} | " + " | ".join(words) + " |"


def page(found: dict[Cell, Outcome], curves: dict[Cell, tuple[float, float]], versions: dict[str, str]) -> str:
    worst = [each for each in found.values() if isinstance(each, Difference)]
    software = ", ".join(f"{name} {versions[name]}" for name in ("torch", "megatron-core", "mcore-bridge"))
    facts = TEXT.format(
        cells=len(found),
        equal=sum(map(equal, found.values())),
        loss=f"{max(each.loss for each in worst):.0e}",
        norm=f"{max(each.norm for each in worst):.0e}",
        most_loss=f"{LOSS:.0e}",
        most_norm=f"{NORM:.0e}",
        steps=STEPS,
        rows=ROWS,
        batch=BATCH,
        micro=MICRO_BATCH,
        length=LENGTH,
        software=software,
    )
    lines = [filled(facts)]
    for model, tuner in product(MODELS, TUNERS):
        lines += [f"## {MODEL_NAMES[model]}, {tuner}", ""]
        lines += [*table(model, tuner, list(METHODS | METHODS_ALIKE), found, curves), ""]
    lines += [
        "## Refused",
        "",
        "By `plan`, before anything is submitted:",
        "",
        "| model | layout | why |",
        "|---|---|---|",
    ]
    for model, layout in product(MODELS, LAYOUTS):
        whys = {tuner: refusal(model, tuner, layout) for tuner in TUNERS}
        if whys["full"]:
            lines.append(f"| {model} | {layout} | {whys['full']} |")
        elif any(whys.values()):
            tuners = ", ".join(tuner for tuner, why in whys.items() if why)
            lines.append(f"| {model}, {tuners} | {layout} | {max(whys.values())} |")
    return "\n".join(lines) + "\n"


def filled(text: str) -> str:
    """The text with its paragraphs filled to the pages' width."""
    parts = text.split("\n\n")
    return "\n\n".join(part if part.startswith("#") else textwrap.fill(part, 118) for part in parts) + "\n"


TEXT = """\
# Every layout computes the same training

Written by `make equivalence`. {equal} of {cells} cells are equal. The largest difference of a loss is {loss}, that of
a gradient norm {norm} (relative); a cell counts as equal below {most_loss} and {most_norm} at every step.

A cell is one training of {steps} steps: a model, a tuner, a method and a layout. It is compared with the same training
in one process, step by step. What it shows is the largest difference of the losses (absolute), and behind the stroke
that of the gradient norms before clipping (relative): losses alone would not do, since Adam with clipping hides
gradients of a wrong scale. The column `loss` is that of one process at the first and the last step: there was
something to learn.

The models have random weights, 4 layers of width 64, 4 heads with 2 KV heads and 104 tokens. {rows} rows of 24 to 70
tokens are trained on in batches of {batch}, {micro} in a forward pass, cut to {length} tokens; {steps} steps are two
passes over them. Arithmetic is fp32 on CPUs, between processes of one machine by gloo, with {software} and this
project's stand-in for Transformer Engine. Dropout is off, since masks differ between layouts. DP2 has the distributed
optimizer. `dpo precomputed` has its reference from one pass before training; the others have it from the model without
its adapters, or from a frozen copy (full).

Not compared here: bf16, GPUs with NCCL and Transformer Engine's own kernels, more than four ranks. `make test` trains
a part of these cells; packing and recomputed activations have tests of their own.
"""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
