"""Which tokens of a row count in the loss, and what becomes of rows that are too long."""

from __future__ import annotations

import pytest

from launcher.errors import WorkerError
from launcher.work.corpus import Cutter, tokenise, warnings
from launcher.work.data import Problem
from launcher.work.tokens import CHUNK, encode

from .characters import END, TEMPLATE, Characters, learnt

pytestmark = pytest.mark.unit

USER = {"role": "user", "content": "and?"}
SAID = {"role": "assistant", "content": "one"}


def chat(*before: dict[str, object], answer: str = "two", **more: object) -> Problem:
    return Problem("r", tuple(before), answer, **more)  # type: ignore[arg-type]


def test_every_turn_of_the_assistant_counts() -> None:
    (found,) = encode([chat(USER, SAID, USER)], Characters())
    assert learnt(found.tokens, found.trained) == "one</>two</>"


def test_silent_turns_and_tools_do_not_count_and_calls_do() -> None:
    tools = ({"function": {"name": "clock"}},)
    calls = {"tool_calls": [{"function": {"name": "clock"}}]}
    (found,) = encode([chat(USER, SAID, USER, answer="", silent=(1,), tools=tools, beside=calls)], Characters())
    assert learnt(found.tokens, found.trained) == "(clock)</>"
    assert learnt(found.tokens, [True] * len(found.tokens)).startswith("[clock]<user>and?</><assistant>one</>")


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"tools": ({"function": {"name": "clock"}},)}, "tools"),
        ({"beside": {"tool_calls": [{"function": {"name": "clock"}}]}}, "tool_calls"),
    ],
)
def test_tools_are_not_lost_without_a_word(more: dict[str, object], word: str) -> None:
    plain = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    with pytest.raises(WorkerError, match=f"row r has {word}, which the chat template does not write"):
        list(encode([chat(USER, **more)], Characters(plain)))


def test_of_a_text_all_counts_and_its_end() -> None:
    (found,) = encode([Problem("t", (), "abc")], Characters(None))
    assert found.tokens == [*map(ord, "abc"), END]
    assert all(found.trained)


def test_rows_keep_their_order_over_chunks_and_kinds() -> None:
    rows = [Problem(str(n), (), f"text {n}") if n % 3 else chat(USER, answer=f"chat {n}") for n in range(2 * CHUNK + 7)]
    for number, found in enumerate(encode(rows, Characters())):
        assert f"{number}" in learnt(found.tokens, found.trained)


def test_without_a_template_conversations_are_refused_and_texts_are_not() -> None:
    with pytest.raises(WorkerError, match="no chat template") as refusal:
        list(encode([chat(USER)], Characters(None)))
    assert "model.chat_template" in str(refusal.value.hint)


def test_turns_that_the_template_rewrites_are_counted_and_not_learnt() -> None:
    last = "loop.last or turn.role == 'user'"
    shortens = TEMPLATE.replace("{{ turn.content }}", "{{ turn.content if " + last + " else turn.content[:1] }}")
    (found,) = encode([chat(USER, SAID, USER)], Characters(shortens))
    assert (learnt(found.tokens, found.trained), found.rewritten) == ("two</>", 1)


def test_a_row_that_the_template_refuses_is_named() -> None:
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(WorkerError, match="refuses row r: roles must alternate"):
        list(encode([chat(USER)], Characters(strict)))


def test_a_template_without_a_generation_prompt_is_refused() -> None:
    odd = TEMPLATE.replace("<assistant>{% endif %}", "<robot>{% endif %}")
    with pytest.raises(WorkerError, match="differently from its prompt"):
        list(encode([chat(USER)], Characters(odd)))
    (found,) = encode([chat(USER)], Characters(odd), whole=True)
    assert all(found.trained), "whole texts need no prompt"


def test_long_rows_are_cut_left_out_and_counted() -> None:
    rows = [chat(USER, answer="x" * 50), chat({"role": "user", "content": "y" * 80}), chat(USER)]
    cutter = Cutter(Characters(), method="sft", sequence_length=60)
    samples = list(cutter.run(rows))
    assert [sample.length for sample in samples] == [60, len("<user>and?</><assistant>two</>") - 1]
    facts = cutter.facts()
    assert (facts["rows"], facts["rows_cut"], facts["rows_left_out"], facts["left_out"]) == (3, 1, 1, ["r"])
    assert [words.split(",")[0] for words in warnings(facts, 60)] == [
        "1 of 3 rows are cut to sequence_length = 60 tokens",
        "1 of 3 rows are left out",
    ]


def test_texts_are_cut_into_pieces_without_loss() -> None:
    text = "abcdefghij" * 5
    samples = tokenise([Problem("t", (), text)], Characters(), method="cpt", sequence_length=16)
    assert [token for sample in samples for token in sample.tokens[1:]] == [*map(ord, text[1:]), END]
    assert [sample.id for sample in samples] == ["t", "t#1", "t#2", "t#3"]


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(WorkerError, match="none of 1 rows has a token to learn within 8 tokens"):
        tokenise([chat(USER)], Characters(), method="sft", sequence_length=8)
