"""The training samples of a run: rows read as a stream, tokenised once, kept for every rank and for later runs.

They lie in `<runs folder>/.tokens/<key>`, where the key is a hash of all that decides about them: contents of the data
files (or parameters of the generator), tokenizer, chat template, method and sequence length. Memory holds a few rows
at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.errors import WorkerError
from launcher.lengths import LengthCount
from launcher.record import read_json, write_json
from launcher.units import counted
from launcher.work import once
from launcher.work.context import Context
from launcher.work.data import Problem, add_to, stream
from launcher.work.samples import Sample, SampleWriter, StoredSamples
from launcher.work.tokens import encode
from launcher.work.versions import installed_versions

FORMAT = 2  # of the files and of the way from rows to samples; a change makes other keys
KEPT_DAYS = 30  # samples that no run has used for so long make room
MOST_NAMED = 20  # rows left out that are named
PROGRESS_SECONDS = 2.0
FACTS = "facts.json"


@dataclass(frozen=True)
class Corpus:
    """Samples on disk and what was counted while they were made."""

    samples: StoredSamples
    facts: Mapping[str, Any]


class Cutter:
    """Rows to samples of at most `sequence_length` + 1 tokens (the last one is only a label), counting what is lost.

    sft: a longer row is cut, and left out where nothing of it counts any more. cpt: all tokens count, and a longer
    row becomes several samples.
    """

    def __init__(self, tokenizer: Any, *, method: str, sequence_length: int) -> None:
        self.tokenizer = tokenizer
        self.whole_texts = method == "cpt"
        self.sequence_length = sequence_length
        self.lengths = LengthCount()  # tokens of each row before it is cut
        self.samples = self.tokens = self.cut = self.rewritten = 0
        self.left_out = 0
        self.named: list[str] = []  # the first rows that were left out

    def run(self, rows: Iterable[Problem]) -> Iterator[Sample]:
        for row, (tokens, trained, rewritten) in _with_rows(rows, self.tokenizer, self.whole_texts):
            self.lengths.add(len(tokens))
            self.rewritten += rewritten
            samples = self._pieces(row, tokens, trained)
            if not samples:
                self.left_out += 1
                self.named += [row.id] if len(self.named) < MOST_NAMED else []
            elif len(tokens) > self.sequence_length + 1 and not self.whole_texts:
                self.cut += 1
            for sample in samples:
                self.samples += 1
                self.tokens += sample.length
                yield sample

    def facts(self) -> dict[str, Any]:
        """What was counted, JSON values."""
        return {
            "rows": self.lengths.rows,
            "samples": self.samples,
            "tokens": self.tokens,
            "rows_cut": self.cut,
            "rows_left_out": self.left_out,
            "left_out": self.named,
            "turns_rewritten": self.rewritten,
            "lengths": asdict(self.lengths.result()),
        }

    def _pieces(self, row: Problem, tokens: list[int], trained: list[bool]) -> list[Sample]:
        length = self.sequence_length
        starts = range(0, max(1, len(tokens) - 1), length) if self.whole_texts else range(1)
        pieces = []
        for number, start in enumerate(starts):
            end = start + length + 1
            if any(trained[start + 1 : end]):
                name = f"{row.id}#{number}" if number else row.id
                pieces.append(Sample(name, tokens[start:end], trained[start:end]))
        return pieces


def tokenise(rows: Sequence[Problem], tokenizer: Any, *, method: str, sequence_length: int) -> list[Sample]:
    """Samples in memory, of a few rows. Raises WorkerError when nothing is left to train on."""
    cutter = Cutter(tokenizer, method=method, sequence_length=sequence_length)
    samples = list(cutter.run(rows))
    _refuse_nothing(cutter)
    return samples


def prepare(context: Context, tokenizer: Any, file_hashes: Mapping[str, str]) -> Corpus:
    """The samples of `options.data` for `options.train`, made by rank 0 unless they are there already.

    `file_hashes` are the SHA-256 of the data files' contents, by path. Every rank calls it; no collective is used, so
    that it may take as long as it takes. Raises WorkerError and InputError for data that cannot be trained on.
    """
    folder = context.files.tokens(context.plan.run_id) / key(context.options, tokenizer, file_hashes)

    def wait(whom: str) -> None:
        context.raise_if_stopping()

    if context.is_main:
        who = {"run": context.plan.run_id, "attempt": context.attempt}
        once.make_once(folder, lambda part: _write(context, tokenizer, part), who=who, on_wait=wait)
        with contextlib.suppress(PermissionError):  # a colleague's
            os.utime(folder / FACTS)  # in use
        _make_room(folder.parent)
    else:
        once.wait_made(folder, on_wait=wait)
    return Corpus(StoredSamples(folder), read_json(folder / FACTS))


def key(options: Mapping[str, Any], tokenizer: Any, file_hashes: Mapping[str, str]) -> str:
    """Names the samples: the same key, the same samples."""
    data, train = options["data"], options["train"]
    if data["source"] == "files":
        rows: dict[str, Any] = {
            split: [(Path(path).name, file_hashes[path]) for path in data.get(split) or ()]
            for split in ("train", "evaluation")
        }
        rows |= {"format": data.get("format"), "columns": data.get("columns")}
    else:
        rows = dict(data)
    versions = installed_versions()
    parts = {
        "format": FORMAT,
        "rows": rows,
        "tokenizer": hashlib.sha256(tokenizer_text(tokenizer).encode()).hexdigest(),
        "template": tokenizer.chat_template,
        "method": train["method"],
        "sequence_length": train["sequence_length"],
        "versions": [versions.get(name, "") for name in ("transformers", "tokenizers", "reasoning-gym")],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def tokenizer_text(tokenizer: Any) -> str:
    """All that decides which tokens a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return f"{backend.to_str() if backend is not None else ''}\n{tokenizer.eos_token_id}"


def warnings(facts: Mapping[str, Any], sequence_length: int) -> Iterator[str]:
    """What of the data is not trained on, in words."""
    rows = counted(facts["rows"], "row")
    if facts["rows_cut"]:
        yield f"{facts['rows_cut']} of {rows} are cut to sequence_length = {sequence_length} tokens"
    if facts["rows_left_out"]:
        more = ", ..." if facts["rows_left_out"] > len(facts["left_out"]) else ""
        yield (
            f"{facts['rows_left_out']} of {rows} are left out, since no token of them counts within {sequence_length} "
            f"tokens: {', '.join(facts['left_out'])}{more}"
        )
    if facts["turns_rewritten"]:
        yield (
            f"{counted(facts['turns_rewritten'], 'assistant turn')} are not learnt: the chat template writes them "
            "differently once another turn follows"
        )


def _write(context: Context, tokenizer: Any, folder: Path) -> None:
    train = context.options["train"]
    cutter = Cutter(tokenizer, method=train["method"], sequence_length=int(train["sequence_length"]))
    digest = hashlib.sha256()
    writer = SampleWriter(folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"  # off elsewhere, since ranks share cores; here the others wait
    try:
        for sample in cutter.run(_watched(context, stream(context.options["data"], "train"), digest, cutter)):
            writer.add(sample)
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        writer.close()
    _refuse_nothing(cutter)
    context.progress(cutter.lengths.rows, cutter.lengths.rows, "rows tokenised")
    write_json(folder / FACTS, {**cutter.facts(), "data_sha256": digest.hexdigest()})


def _watched(context: Context, rows: Iterable[Problem], digest: hashlib._Hash, cutter: Cutter) -> Iterator[Problem]:
    """The rows; on their way they are counted into the fingerprint, and progress is told."""
    told = 0.0
    for row in rows:
        add_to(digest, row)
        if time.monotonic() - told > PROGRESS_SECONDS:
            context.raise_if_stopping()
            context.progress(cutter.lengths.rows, 0, "rows tokenised")
            told = time.monotonic()
        yield row


def _with_rows(rows: Iterable[Problem], tokenizer: Any, whole: bool) -> Iterator[tuple[Problem, Any]]:
    """Each row with its tokens; rows are read in chunks ahead of them."""
    waiting: list[Problem] = []

    def kept() -> Iterator[Problem]:
        for row in rows:
            waiting.append(row)
            yield row

    for encoded in encode(kept(), tokenizer, whole=whole):
        yield waiting.pop(0), encoded


def _refuse_nothing(cutter: Cutter) -> None:
    if not cutter.samples:
        raise WorkerError(
            f"none of {cutter.lengths.rows} rows has a token to learn within {cutter.sequence_length} tokens",
            where="train.sequence_length",
            hint="raise sequence_length, or look at the data: swiftlaunch data",
        )


def _make_room(cache: Path) -> None:
    """Delete what no run has used for a long time, and what makers left that were killed."""
    for entry in cache.iterdir():
        facts = entry / FACTS
        try:
            unused = time.time() - (facts if facts.exists() else entry).stat().st_mtime
        except FileNotFoundError:
            continue
        if unused > KEPT_DAYS * 86_400:
            print(f"removing what was not used for {KEPT_DAYS} days: {entry}", file=sys.stderr)
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
