"""Rows become tokens, with a mark at each token that counts in the loss.

Needs a tokenizer of transformers and no torch. A conversation is written by the chat template as one text and
tokenised once; which tokens count follows from where the assistant's turns stand in that text.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from launcher.errors import WorkerError
from launcher.work.data import Problem, tools_of

_LONG = {"verbose": False}  # rows may be longer than the model takes: they are cut afterwards
CHUNK = 512  # rows that are tokenised together; the tokenizer's threads share them


class Encoded(NamedTuple):
    """One row. `trained[i]` says whether token i counts in the loss; `rewritten` counts the assistant's turns that do
    not, because the template shows them differently once another turn follows."""

    tokens: list[int]
    trained: list[bool]
    rewritten: int = 0


class _Written(NamedTuple):
    text: str
    spans: list[tuple[int, int]]  # characters that the model writes
    rewritten: int = 0


def encode(rows: Iterable[Problem], tokenizer: Any, *, whole: bool = False) -> Iterator[Encoded]:
    """The rows' tokens, in order. Of a text all count, of a conversation the assistant's turns, or all with `whole`.

    Raises WorkerError for a conversation without a chat template, or one that the template refuses.
    """
    if not tokenizer.is_fast:
        raise WorkerError(
            f"{type(tokenizer).__name__} does not say where in the text a token stands",
            where="model",
            hint="convert it to a tokenizer.json",
        )
    source = iter(rows)
    while chunk := list(islice(source, CHUNK)):
        chats = iter(_chats([row for row in chunk if row.messages], tokenizer, whole))
        texts = iter(_texts([row for row in chunk if not row.messages], tokenizer))
        for row in chunk:
            yield next(chats if row.messages else texts)


def _texts(rows: Sequence[Problem], tokenizer: Any) -> Iterator[Encoded]:
    if not rows:
        return
    for tokens in tokenizer([row.answer for row in rows], return_attention_mask=False, **_LONG)["input_ids"]:
        end = [] if tokenizer.eos_token_id in (None, *tokens[-1:]) else [tokenizer.eos_token_id]
        yield Encoded([*tokens, *end], [True] * (len(tokens) + len(end)))


def _chats(rows: Sequence[Problem], tokenizer: Any, whole: bool) -> Iterator[Encoded]:
    if not rows:
        return
    if not tokenizer.chat_template:
        raise WorkerError(
            "the tokenizer has no chat template, so there is no telling how it marks the turns of a conversation",
            where="model",
            hint='take the instruct model, give a template (model.chat_template = "FILE"), or train on rows of text',
        )
    written = [_written(row, tokenizer, whole) for row in rows]
    found = tokenizer(
        [text for text, _, _ in written],
        add_special_tokens=False,  # the template has written them
        return_attention_mask=False,
        return_offsets_mapping=True,
        **_LONG,
    )
    for (_, spans, rewritten), tokens, offsets in zip(
        written, found["input_ids"], found["offset_mapping"], strict=True
    ):
        trained = [False] * len(tokens)
        ends = [end for _, end in offsets]  # not starts: tokenizers leave a token's leading space out of its offsets
        for start, end in spans:
            first, last = bisect_right(ends, start), bisect_right(ends, end)
            trained[first:last] = [True] * (last - first)
        yield Encoded(tokens, trained, rewritten)


def _written(row: Problem, tokenizer: Any, whole: bool) -> _Written:
    """The conversation as the template writes it, and where in it the assistant's turns are that count."""
    turns = row.conversation
    for word, used in (("tools", row.tools), ("tool_calls", any("tool_calls" in turn for turn in turns))):
        if used and word not in str(tokenizer.chat_template):
            raise WorkerError(
                f"row {row.id} has {word}, which the chat template does not write",
                where="data",
                hint='use a model or a template (model.chat_template = "FILE") made for tools',
            )
    text = _templated(row, turns, tokenizer, prompt=False)
    if whole:
        return _Written(text, [(-1, len(text))])
    spans: list[tuple[int, int]] = []
    rewritten = 0
    for index, turn in enumerate(turns):
        if turn["role"] != "assistant" or index in row.silent:
            continue
        last = index == len(turns) - 1
        before = _templated(row, turns[:index], tokenizer, prompt=True) if index else None
        through = text if last else _templated(row, turns[: index + 1], tokenizer, prompt=False)
        if before is not None and text.startswith(through) and through.startswith(before):
            spans.append((len(before), len(through)))
        elif last:
            raise WorkerError(
                f"the tokenizer's chat template writes the answer of row {row.id} differently from its prompt",
                where="model",
                hint="the generation prompt must begin the assistant's turn; use another template, or method cpt",
            )
        else:  # templates of reasoning models shorten earlier turns: the model would never write them so
            rewritten += 1
    return _Written(text, spans, rewritten)


def _templated(row: Problem, turns: Sequence[Any], tokenizer: Any, *, prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(
            tokenizer.apply_chat_template(
                list(turns), tools=tools_of(row), tokenize=False, add_generation_prompt=prompt
            )
        )
    except (TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        raise WorkerError(
            f"the chat template refuses row {row.id}: {error}",
            where="data",
            hint="change the row, or use another template: model.chat_template",
        ) from error
