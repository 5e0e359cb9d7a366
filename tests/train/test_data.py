"""Rows for training and evaluation: never the same question in both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import WorkerError
from launcher.work.data import Problem, fingerprint, problems, score, stream

pytestmark = pytest.mark.unit


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_of_files_take_one_shape(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
    ]
    chat = write(tmp_path / "chat.jsonl", [{"messages": turns}])
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "3 + 1?", "completion": "4"}])
    texts = write(tmp_path / "texts.jsonl", [{"text": "Once upon a time."}])
    (first, second, third) = (
        problems({"source": "files", "train": [path], "evaluation": []}, "train")[0] for path in (chat, pairs, texts)
    )
    assert first.conversation == turns
    assert second.messages == ({"role": "user", "content": "3 + 1?"},)
    assert (second.answer, second.id) == ("4", "pairs.jsonl:1")
    assert (third.messages, third.answer) == ((), "Once upon a time.")


def test_evaluation_rows_are_left_out_of_training(tmp_path: Path) -> None:
    train = write(tmp_path / "t.jsonl", [{"prompt": f"{n} + 1?", "completion": str(n + 1)} for n in range(10)])
    held = write(tmp_path / "e.jsonl", [{"prompt": " 3  + 1?", "completion": "4"}])
    data = {"source": "files", "train": [train], "evaluation": [held]}
    assert [row.answer for row in problems(data, "evaluation")] == ["4"]
    assert [row.answer for row in problems(data, "train")] == [str(n + 1) for n in range(10) if n != 3]


def test_bad_answers_are_for_verdicts_alone(tmp_path: Path) -> None:
    def row(prompt: str, label: bool) -> dict[str, Any]:
        return {"prompt": prompt, "completion": "2", "label": label}

    learnt = write(tmp_path / "train.jsonl", [row("1 + 1?", True), row("1 + 2?", False), row("2 + 2?", False)])
    held_out = write(tmp_path / "held-out.jsonl", [row("3 - 1?", True), row("1 + 2?", False)])
    data = {"source": "files", "train": [learnt], "evaluation": [held_out], "format": "kto"}
    assert [found.wanted for found in problems(data, "train")] == [True, False], "what is held out is not trained on"
    assert [found.wanted for found in problems(data, "evaluation")] == [True], "nobody is to repeat a bad answer"
    assert [found.wanted for found in stream(data, "evaluation", verdicts=True)] == [True, False]


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(WorkerError, match="unknown source"):
        problems({"source": "dreams"}, "train")


@pytest.mark.parametrize(
    ("text", "points"),
    [("1234", 1.0), ("The sum is 1,234.", 1.0), ("1234 - no, 1235", 0.0), ("", 0.0), ("no idea", 0.0)],
)
def test_the_last_number_counts(text: str, points: float) -> None:
    assert score(Problem("a", (), "1234"), text) == points


@pytest.mark.parametrize(
    ("wanted", "text", "points"),
    [
        ("1,234", "It is 1,234.", 1.0),
        ("1,234", "1234", 1.0),
        ("1,234", "1,235", 0.0),
        ("1,2,3", "1,2,3", 1.0),  # a list, not a number
        ("1,2,3", "3", 0.0),
        ("123", "1,2,3", 0.0),
        ("-5", "10 - 15 = -5", 1.0),
    ],
)
def test_commas_of_thousands_and_of_lists(wanted: str, text: str, points: float) -> None:
    assert score(Problem("a", (), wanted), text) == points


def test_texts_are_compared_with_spaces_folded() -> None:
    problem = Problem("a", (), "the quick\nfox")
    assert score(problem, " the quick fox\n") == 1.0
    assert score(problem, "the quick fox jumps") == 0.0


def test_the_fingerprint_sees_content_and_order() -> None:
    one, two = Problem("a", (), "x"), Problem("b", (), "y")
    assert fingerprint([one, two]) != fingerprint([two, one])
    assert fingerprint([one]) == fingerprint([Problem("other id", (), "x")])
