"""Rows of training and evaluation files, in one shape whatever the file.

Standard library only: the login node's check and the workers in their containers share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.datafiles import BadFile, BadRow, file_fault, parse, records
from launcher.errors import Fault, InputError

Row = dict[str, Any]
"""One of {"messages": [{"role", "content"}, ...]}, {"prompt", "completion"}, {"text"}, all values texts;
{"prompt": [{"role", "content"}, ...], "chosen", "rejected"}: two answers in texts, the better one named;
{"prompt": [...], "completion", "label"}: one answer and whether it is wanted.

A message may also have `weight` (0: the assistant said it, but it is not learnt), `tool_calls` ([{"type": "function",
"function": {"name", "arguments"}}]), `name`, `tool_call_id` and `reasoning_content`. A row of messages may have
`tools`, a list of JSON schemas."""

FORMATS = ("auto", "messages", "prompt_completion", "text", "preference", "kto")

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant", "function": "tool", "observation": "tool"}
# the column of each part under the names that published data sets use, the first present one counts
_COLUMNS = {
    "messages": ("messages", "conversations"),
    "prompt": ("prompt", "question", "instruction"),
    "completion": ("completion", "response", "answer", "output"),
    "text": ("text", "content"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
}
PARTS = {
    "preference": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
_TEXTS_BESIDE = ("name", "tool_call_id", "reasoning_content")  # of a message, handed to the chat template
_WEIGHTS = ("weight", "loss", "train")  # whether a message is learnt, as OpenAI, ms-swift and Axolotl write it


def read_rows(
    paths: Sequence[Path | str], format: str = "auto", columns: Mapping[str, str | None] | None = None
) -> Iterator[Row]:
    """The rows of the files, in order; see `placed_rows`."""
    return (row for _, row in placed_rows(paths, format, columns))


def placed_rows(
    paths: Sequence[Path | str], format: str = "auto", columns: Mapping[str, str | None] | None = None
) -> Iterator[tuple[str, Row]]:
    """The rows of the files, in order, each with its place: FILE:LINE (of Parquet the row's number).

    `columns` maps a part (messages, prompt, completion, text, chosen, rejected, label) to a column's name; None
    stands for the usual name.
    Raises InputError (file:line and reason) at the first row that cannot be used; UserError without pyarrow; OSError
    as it comes, since a job on a shared file system may have more luck next time.
    """
    shape = Shape(format, columns)
    for path in map(Path, paths):
        try:
            for item in records(path):
                try:
                    row = shape.row(item.record)
                except BadRow as bad:
                    raise InputError([Fault(item.where, str(bad))]) from None
                yield item.where, row
        except BadFile as bad:
            raise InputError([file_fault(path, bad)]) from None


@dataclass
class Shape:
    """Which columns hold the parts of a row; with format "auto" the first usable row decides."""

    format: str
    columns: Mapping[str, str | None] | None
    kind: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is not one of {', '.join(FORMATS)}")

    def row(self, record: object) -> Row:
        """The record in one of the shapes. Raises BadRow."""
        if isinstance(record, BadRow):
            raise record
        if not isinstance(record, dict):
            raise BadRow(f"is {_kind(record)}, not an object with named columns")
        kind, names = (self.kind, self.names) if self.kind else self._recognise(record)
        for part, name in names.items():
            if name not in record and not (kind == "preference" and part == "prompt"):
                raise BadRow(f"has no column {name!r} for the {part}; it has {_listed(record)}")
        if kind == "messages":
            row: Row = {"messages": _messages(record[names["messages"]])}
            if all(turn.get("weight") == 0 for turn in row["messages"] if turn["role"] == "assistant"):
                raise BadRow("has no message to learn: all of the assistant's have the weight 0")
            if record.get("tools"):
                row["tools"] = _tools(record["tools"])
        elif kind == "preference":
            row = _preference(record, names)
        elif kind == "kto":
            row = _judged(record, names)
        else:
            row = {part: _text(record[name], name) for part, name in names.items()}
            if names.get("prompt") == "instruction" and record.get("input"):  # Alpaca's second half of the prompt
                row["prompt"] += "\n\n" + _text(record["input"], "input")
        self.kind, self.names = kind, names
        return row

    def _recognise(self, record: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        given = {part: name for part, name in (self.columns or {}).items() if name}
        # columns named "chosen" or "label" do not make rows what a method must ask for
        possible = ("messages", "prompt_completion", "text") if self.format == "auto" else (self.format,)
        for kind, parts in PARTS.items():
            if kind not in possible or (given and not any(part in given for part in parts)):
                continue
            names = {part: given.get(part) or _first(record, _COLUMNS[part]) for part in parts}
            if kind == "preference":  # the prompt may be part of the two conversations
                names["prompt"] = names["prompt"] or "prompt"
            if all(names.values()):
                return kind, names
        wanted = "messages, prompt and completion, or text"
        if self.format != "auto":
            wanted = " and ".join(PARTS[self.format])
        raise BadRow(f"has no columns for {wanted}; it has {_listed(record)} (name them under data.columns)")


def _first(record: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in record), "")


def _listed(record: Mapping[str, Any]) -> str:
    names = [repr(name) for name in record]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _preference(record: Mapping[str, Any], names: Mapping[str, str]) -> Row:
    """Prompt and two answers, given as texts, as messages, or as two conversations that part at their last message."""
    prompt = _prompt(record[names["prompt"]], names["prompt"]) if names["prompt"] in record else []
    before, chosen = _answer(record[names["chosen"]], names["chosen"])
    also_before, rejected = _answer(record[names["rejected"]], names["rejected"])
    if before != also_before:
        raise BadRow(f"{names['chosen']} and {names['rejected']} differ before their last message")
    if not before and not prompt:
        raise BadRow(f"has no {names['prompt']}, and {names['chosen']} holds the answer alone")
    return {"prompt": before or prompt, "chosen": chosen, "rejected": rejected}


def _judged(record: Mapping[str, Any], names: Mapping[str, str]) -> Row:
    """Prompt, one answer, and whether it is wanted: true or false, also written as 1 or 0 or as a text in CSV."""
    before, completion = _answer(record[names["completion"]], names["completion"])
    label = record[names["label"]]
    words = {"true": True, "1": True, "false": False, "0": False}
    if not isinstance(label, bool):
        found = words.get(str(label).strip().lower()) if isinstance(label, (str, int)) else None
        if found is None:
            raise BadRow(f"{names['label']} is {label!r:.40}, not true or false")
        label = found
    return {
        "prompt": before or _prompt(record[names["prompt"]], names["prompt"]),
        "completion": completion,
        "label": label,
    }


def _prompt(value: object, name: str) -> list[dict[str, str]]:
    """A prompt as messages; a text is the user's."""
    if isinstance(value, list):
        return _messages(value, name, last="")
    return [{"role": "user", "content": _text(value, name)}]


def _answer(value: object, name: str) -> tuple[list[dict[str, str]], str]:
    """The messages before an answer, where it is given as messages, and the answer."""
    if isinstance(value, list):
        turns = _messages(value, name)
        return turns[:-1], turns[-1]["content"]
    return [], _text(value, name)


def _messages(value: object, name: str = "messages", last: str = "assistant") -> list[dict[str, Any]]:
    """Turns with roles as chat templates know them; the last one is of the role `last`, if that is given."""
    if not isinstance(value, list) or not value:
        raise BadRow(f"{name} is {_kind(value)}, not a list of messages" if value else f"{name} is empty")
    turns = [_turn(turn, number) for number, turn in enumerate(value, start=1)]
    if last and turns[-1]["role"] != last:
        raise BadRow(f"ends with the {turns[-1]['role']}'s message, not with the {last}'s")
    if not last and turns[-1]["role"] == "assistant":
        raise BadRow(f"{name} ends with the assistant's message, which belongs to the answer")
    return turns


def _turn(turn: object, number: int) -> dict[str, Any]:
    """One message: role and content, and what else chat templates and the loss know of it."""
    if not isinstance(turn, dict):
        raise BadRow(f"message {number} is {_kind(turn)}, not an object with role and content")
    sharegpt = "from" in turn and "role" not in turn
    role, key = (turn["from"], "value") if sharegpt else (turn.get("role"), "content")
    known = (_SHAREGPT_ROLES if sharegpt else _ROLES).get(role) if isinstance(role, str) else None
    if known is None:
        raise BadRow(f"message {number} has the role {role!r}, not system, user, assistant or tool")
    calls = _tool_calls(turn["tool_calls"], number) if known == "assistant" and turn.get("tool_calls") else []
    if key not in turn and not calls:
        raise BadRow(f"message {number} has no {key}")
    content = turn.get(key)
    wordless = (calls and content in (None, "")) or (known == "tool" and content == "")
    found: dict[str, Any] = {
        "role": known,
        "content": "" if wordless else _text(content, f"{key} of message {number}"),
    }
    if calls:
        found["tool_calls"] = calls
    for beside in _TEXTS_BESIDE:
        if turn.get(beside):
            found[beside] = _text(turn[beside], f"{beside} of message {number}")
    if (weight := _weight(turn, number)) is not None:
        if weight and known != "assistant":
            raise BadRow(f"message {number} is the {known}'s and cannot be learnt: only the assistant's are")
        found["weight"] = weight
    return found


def _weight(turn: Mapping[str, Any], number: int) -> int | None:
    """Whether the message counts in the loss: 1 or 0; None where the row does not say."""
    for name in _WEIGHTS:
        if turn.get(name) is not None:
            if turn[name] not in (0, 1):  # true and false are 1 and 0
                raise BadRow(f"{name} of message {number} is {turn[name]!r:.40}, not 0 or 1")
            return int(turn[name])
    return None


def _tool_calls(value: object, number: int) -> list[dict[str, Any]]:
    """Calls as chat templates take them: arguments are an object, also where the file holds them as JSON in a text."""
    if not isinstance(value, list):
        raise BadRow(f"tool_calls of message {number} is {_kind(value)}, not a list")
    calls = []
    for call in value:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadRow(f"tool_calls of message {number} names no function")
        arguments = function.get("arguments") or {}
        if isinstance(arguments, str):
            arguments = parse(arguments)
        if not isinstance(arguments, dict):
            raise BadRow(f"arguments of {function['name']} in message {number} are not an object")
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append({**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _tools(value: object) -> list[dict[str, Any]]:
    """Descriptions of tools, a list of JSON schemas, also where the file holds them as JSON in a text."""
    if isinstance(value, str):
        value = parse(value)
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise BadRow("tools is not a list of descriptions of functions")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, not a text")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow(f"{name} holds half of a surrogate pair, which no tokenizer takes") from None
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
