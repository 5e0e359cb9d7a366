"""Packing and tokenisation of training data: `python -m tests.bench.data`, a part of `make bench`.

Packing: how full rows are, over rows whose lengths are real: every documented function of the Python libraries that
are installed here is one, its documentation the prompt and its source the answer. Tokenisation: rate and memory over
a file of 1 GiB (--mib), in the train environment.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.work import corpus
from launcher.work.data import Problem, stream
from launcher.work.packing import pack
from launcher.work.samples import SampleWriter, StoredSamples
from tests.bench.page import PAGE, machine, put, table

SEQUENCE_LENGTHS = (1024, 2048, 4096, 8192, 32768)
MOST_ROWS = 10_000
GOAL = 0.98


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024, help="size of the file that is tokenised")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page to write a section of")
    parser.add_argument("--model", help="folder of the model whose tokenizer counts")
    arguments = parser.parse_args()
    if arguments.model is None:  # outside the train environment: go there
        import tests.conftest  # noqa: F401 - it names the environments

        python, model = os.environ["SWIFTLAUNCH_TEST_TRAIN_PYTHON"], os.environ["SWIFTLAUNCH_TEST_MODEL"]
        words = [python, "-m", "tests.bench.data", "--model", model, "--mib", str(arguments.mib)]
        words += ["--page", str(arguments.page)]
        sys.exit(subprocess.run(words, check=False).returncode)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    rows = list(islice(functions(), MOST_ROWS))
    about, lengths = measure(rows, tokenizer)
    packed = {capacity: packing(lengths, capacity) for capacity in SEQUENCE_LENGTHS}
    with tempfile.TemporaryDirectory() as folder:
        rate = tokenise(rows, tokenizer, Path(folder), arguments.mib)
    head = ("sequence_length", "packed rows", "slots filled", "without packing", "seconds")
    filled = table(head, [(str(capacity), *cells) for capacity, (_, cells) in packed.items()])
    text = f"{textwrap.fill(about, 118)}\n\n{filled}\n\n{textwrap.fill(rate, 118)}"
    print(text)
    put("Data", text, arguments.page)
    if min(efficiency for efficiency, _ in packed.values()) < GOAL:
        sys.exit(f"packing fills less than {GOAL:.0%} of the slots")


def functions() -> Iterator[Problem]:
    """Functions with documentation: the standard library's, then those of the packages beside it."""
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    files = [path for folder in folders for path in sorted(folder.rglob("*.py"))]
    for path in random.Random(1).sample(files, len(files)):
        try:
            text = path.read_text(encoding="utf-8")
            tree, lines = ast.parse(text), text.split("\n")
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        for node in ast.walk(tree):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            words = ast.get_docstring(node)
            if words and words.strip():
                source = "\n".join(lines[node.lineno - 1 : node.end_lineno])
                yield Problem(f"{path.name}:{node.lineno}", ({"role": "user", "content": words},), source)


def measure(rows: list[Problem], tokenizer: Any) -> tuple[str, list[int]]:
    """What the rows are in words, and the tokens of each."""
    cutter = corpus.Cutter(tokenizer, method="sft", sequence_length=2**24)
    lengths = [sample.length for sample in cutter.run(rows)]
    found = cutter.lengths.result()
    shares = ", ".join(f"{percent} % up to {length}" for percent, length in found.percentiles)
    about = (
        f"Rows are {len(rows)} documented functions of Python libraries with {found.smallest} to {found.largest} "
        f"tokens ({shares}), cut to the sequence length."
    )
    return about, lengths


def packing(lengths: list[int], capacity: int) -> tuple[float, Sequence[str]]:
    """The share of slots that hold a token, and a line of the table: it beside that of rows which are not packed."""
    cut = [min(length, capacity) for length in lengths]
    started = time.perf_counter()
    packs = pack(cut, capacity, seed=1234)
    seconds = time.perf_counter() - started
    alone = sum(cut) / (len(cut) * capacity)
    return packs.efficiency, (str(len(packs)), f"{packs.efficiency:.2%}", f"{alone:.1%}", f"{seconds:.2f}")


def tokenise(rows: list[Problem], tokenizer: Any, folder: Path, mib: int) -> str:
    """Write a file of these rows again and again and tokenise it as a training stage does; how that went, in words."""
    lines = [
        json.dumps({"messages": row.conversation}, ensure_ascii=False).replace("\\n", f"\\n{number} ", 1)
        for number, row in enumerate(rows)
    ]
    file = folder / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        while out.tell() < mib * 2**20:
            out.writelines(line + "\n" for line in lines)
    del lines, rows
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    cutter = corpus.Cutter(tokenizer, method="sft", sequence_length=4096)
    (folder / "samples").mkdir()
    writer = SampleWriter(folder / "samples")
    for sample in cutter.run(stream({"source": "files", "train": [str(file)], "evaluation": []}, "train")):
        writer.add(sample)
    writer.close()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = file.stat().st_size / 2**20
    started = time.perf_counter()
    packs = pack(StoredSamples(folder / "samples").lengths(), 4096, seed=1)
    return (
        f"A file of {size:.0f} MiB, {cutter.lengths.rows} rows, is tokenised in {seconds:.0f} s on {machine()}: "
        f"{size / seconds:.1f} MiB/s, {writer.tokens / seconds:.0f} tokens/s. The process has {before:.0f} MiB of "
        f"memory before and {after:.0f} MiB at most meanwhile. Packing its {writer.tokens} tokens into rows of 4096 "
        f"takes {time.perf_counter() - started:.1f} s and fills {packs.efficiency:.2%} of the slots."
    )


if __name__ == "__main__":
    main()
