"""Rows of preference data: two answers to a prompt, or one answer with a verdict, as published data sets write them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.dataset import check_files, longest_sequence
from launcher.rows import read_rows
from launcher.work.data import fingerprint, problems

pytestmark = pytest.mark.unit

USER = {"role": "user", "content": "1+1?"}
GOOD = {"role": "assistant", "content": "2"}
BAD = {"role": "assistant", "content": "3"}
SYSTEM = {"role": "system", "content": "Add."}
PAIR = {"prompt": [USER], "chosen": "2", "rejected": "3"}
JUDGED = {"prompt": [USER], "completion": "2", "label": True}


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"prompt": "1+1?", "chosen": "2", "rejected": "3"}, PAIR),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 9.0}, PAIR),
        ({"prompt": "1+1?", "chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]}, PAIR),
        (
            {"chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            {"prompt": [SYSTEM, USER], "chosen": "2", "rejected": "3"},
        ),
        ({"prompt": "1+1?", "completion": "2", "label": True}, JUDGED),
        ({"prompt": [USER], "completion": [GOOD], "label": True}, JUDGED),
    ],
)
def test_shapes(tmp_path: Path, record: dict[str, Any], row: dict[str, Any]) -> None:
    assert list(read_rows([jsonl(tmp_path, record)], "kto" if "label" in row else "preference")) == [row]


def test_nobody_gets_preferences_unasked(tmp_path: Path) -> None:
    """Data for tuning on answers often has such columns too, which mean nothing to it."""
    rows = read_rows([jsonl(tmp_path, {"prompt": "1+1?", "completion": "2", "label": False})])
    assert list(rows) == [{"prompt": "1+1?", "completion": "2"}]
    rows = read_rows([jsonl(tmp_path, {"messages": [USER, GOOD], "chosen": [USER, GOOD], "rejected": [USER, BAD]})])
    assert list(rows) == [{"messages": [USER, GOOD]}]


def test_columns_have_names_of_their_own(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"q": "1+1?", "yes": "2", "no": "3", "ok": 0})
    assert list(read_rows([path], "preference", {"prompt": "q", "chosen": "yes", "rejected": "no"})) == [PAIR]
    (judged,) = read_rows([path], "kto", {"prompt": "q", "completion": "no", "label": "ok"})
    assert judged == {"prompt": [USER], "completion": "3", "label": False}


def test_labels_of_tables_are_words(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "completion", "label"], ["1+1?", "2", "True"], ["1+1?", "3", "0"]])
    assert [row["label"] for row in read_rows([path], "kto")] == [True, False]


BAD_PAIRS = [
    ({"prompt": "1+1?", "chosen": "2"}, "has no column 'rejected' for the rejected"),
    ({"chosen": "2", "rejected": "3"}, "has no prompt, and chosen holds the answer alone"),
    ({"prompt": "1+1?", "chosen": "", "rejected": "3"}, "chosen is empty"),
    ({"prompt": "1+1?", "chosen": "2", "rejected": None}, "rejected is null, not a text"),
    ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "differ before their last message"),
    ({"chosen": [USER, GOOD], "rejected": [USER]}, "ends with the user's message"),
    ({"prompt": [USER, GOOD], "chosen": "2", "rejected": "3"}, "prompt ends with the assistant's message"),
    ({"prompt": [], "chosen": "2", "rejected": "3"}, "prompt is empty"),
]


@pytest.mark.parametrize(("record", "reason"), BAD_PAIRS, ids=[reason for _, reason in BAD_PAIRS])
def test_bad_pairs_are_named(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    report = check_files([jsonl(tmp_path, PAIR, record)], "preference")
    assert (report.rows, report.bad_rows, report.format) == (1, 1, "preference")
    assert report.faults[0].where.endswith("d.jsonl:2")
    assert reason in report.faults[0].message


@pytest.mark.parametrize("label", [None, "maybe", 2, 1.0])
def test_verdicts_are_true_or_false(tmp_path: Path, label: object) -> None:
    report = check_files([jsonl(tmp_path, JUDGED, {**JUDGED, "label": label})], "kto")
    assert (report.rows, report.bad_rows) == (1, 1)
    assert "not true or false" in report.faults[0].message


def test_lengths_are_of_what_is_seen_at_once(tmp_path: Path) -> None:
    assert longest_sequence({**PAIR, "rejected": "three"}) == "user\n1+1?\nthree"
    report = check_files([jsonl(tmp_path, PAIR, PAIR, {**PAIR, "rejected": "4"})], "preference")
    assert report.duplicates == 1
    assert report.characters.largest == len("user\n1+1?\n2")


def test_rows_for_the_workers(tmp_path: Path) -> None:
    pairs = jsonl(tmp_path, PAIR)
    data: dict[str, Any] = {"source": "files", "train": [str(pairs)], "format": "preference"}
    (row,) = problems(data, "train")
    assert (row.messages, row.answer, row.rejected, row.wanted) == ((USER,), "2", "3", None)
    plain = fingerprint([row])
    judged = jsonl(tmp_path, JUDGED, {**JUDGED, "completion": "3", "label": False})
    data = {"source": "files", "train": [str(judged)], "evaluation": [str(judged)], "format": "kto"}
    assert [row.answer for row in problems(data, "evaluation")] == ["2"], "bad answers are not what is asked for"
    data = {**data, "evaluation": []}
    found = problems(data, "train")
    assert [(row.answer, row.wanted) for row in found] == [("2", True), ("3", False)]
    assert len({plain, fingerprint(found[:1]), fingerprint(found)}) == 3
