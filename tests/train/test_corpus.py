"""Training samples are made once, shared between runs, and data that cannot be trained on ends in one report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import InputError, WorkerError
from launcher.failures import CONFIGURATION, classify
from launcher.plan import from_json
from launcher.record import read_events
from launcher.work import corpus
from launcher.work.context import Context, from_environment
from launcher.work.folders import sha256_of

from .characters import TEMPLATE, Characters
from .conftest import write_run

pytestmark = pytest.mark.unit

Maker = Callable[..., Context]


@pytest.fixture
def made(tmp_path: Path) -> Maker:
    """A context of a run over the file rows.jsonl; runs are told apart by name."""

    def make(run: str = "one", rank: int = 0, **train: Any) -> Context:
        folder = tmp_path / run
        if not folder.exists():
            data = {"source": "files", "train": [str(tmp_path / "rows.jsonl")], "evaluation": []}
            write_run(folder, tmp_path / "no-model", 2, data, {"sequence_length": 64, **train})
        plan = from_json((folder / "plan.json").read_text())
        return from_environment(plan, "train", {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2"})

    return make


def write(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def prepare(context: Context, tokenizer: Any = None) -> corpus.Corpus:
    hashes = {path: sha256_of(Path(path)) for path in context.options["data"]["train"]}
    return corpus.prepare(context, tokenizer or Characters(), hashes)


ROWS = [{"prompt": f"{n} + 1?", "completion": str(n + 1)} for n in range(5)]


def test_ranks_and_runs_share_what_is_made_once(made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ROWS)
    first = prepare(made("one"))
    monkeypatch.setattr(corpus, "stream", lambda *_: pytest.fail("read again"))
    other_rank, other_run = prepare(made("one", rank=1)), prepare(made("two"))
    for found in (other_rank, other_run):
        assert [sample.tokens for sample in found.samples] == [sample.tokens for sample in first.samples]
        assert found.facts == first.facts
    assert first.facts["rows"] == 5
    assert [sample.id for sample in first.samples] == [f"rows.jsonl:{n}" for n in range(1, 6)]
    assert len(list((tmp_path / ".tokens").iterdir())) == 1


def test_what_decides_about_samples_is_in_their_key(made: Maker, tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    context = made()
    hashes = {str(path): "abc"}

    def key(tokenizer: Any = None, file: str = "abc", **train: Any) -> str:
        options = {**context.options, "train": {**context.options["train"], **train}}
        return corpus.key(options, tokenizer or Characters(), {str(path): file})

    same = {corpus.key(context.options, Characters(), hashes), key(), key(learning_rate=1.0, seed=9)}
    assert len(same) == 1
    template = Characters(TEMPLATE + " ")
    others = [key(file="abd"), key(template), key(method="cpt"), key(sequence_length=65)]
    assert len({*same, *others}) == 5


def test_progress_is_told(made: Maker, tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    context = made()
    prepare(context)
    told = [event for event in read_events(context.files.events) if event["kind"] == "progress"]
    assert [(event["done"], event["total"]) for event in told] == [(0, 0), (5, 5)]


@pytest.mark.parametrize(
    ("rows", "tokenizer", "words"),
    [
        ([*ROWS, '{"prompt": "broken'], None, "rows.jsonl:6"),
        ([*ROWS, {"prompt": "x"}], None, "rows.jsonl:6"),
        (ROWS, Characters(None), "no chat template"),
        ([{"prompt": "x" * 100, "completion": "y"}], None, "none of 1 rows has a token to learn within 64 tokens"),
    ],
)
def test_data_that_cannot_be_trained_on_ends_in_one_report(
    made: Maker, tmp_path: Path, rows: list[Any], tokenizer: Any, words: str
) -> None:
    write(tmp_path, rows)
    with pytest.raises((InputError, WorkerError)) as refusal:
        prepare(made(), tokenizer)
    assert words in str(refusal.value)
    assert classify(refusal.value).kind == CONFIGURATION, "no other attempt is made"
    assert list((tmp_path / ".tokens").iterdir()) == []
    write(tmp_path, ROWS)
    assert len(prepare(made()).samples) == 5, "with other data the same run goes on"


def test_a_stop_while_tokenising_leaves_nothing(made: Maker, tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    context = made()
    context.stop_signal = 15
    with pytest.raises(Exception, match="SIGTERM"):
        prepare(context)
    assert list((tmp_path / ".tokens").iterdir()) == []


def test_samples_that_nobody_used_for_long_make_room(made: Maker, tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    prepare(made())
    (old,) = (tmp_path / ".tokens").iterdir()
    long_ago = time.time() - (corpus.KEPT_DAYS + 1) * 86_400
    os.utime(old / corpus.FACTS, (long_ago, long_ago))
    lock = tmp_path / ".tokens/.killed.lock"
    lock.touch()
    os.utime(lock, (long_ago, long_ago))
    prepare(made("two", sequence_length=65))
    (kept,) = (tmp_path / ".tokens").iterdir()
    assert kept != old
