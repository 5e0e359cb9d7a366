"""Training and evaluation files: rows in one shape, and a check that names every bad line.

Standard library only: the login node's check and the workers in their containers share it. Files are read as
streams (.jsonl, .json, .csv, .parquet); pyarrow is loaded for Parquet alone.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from launcher.errors import Fault, InputError, UserError

Row = dict[str, Any]
"""{"messages": [{"role", "content"}, ...]} or {"prompt", "completion"} or {"text"}; all values are texts."""

FORMATS = ("auto", "messages", "prompt_completion", "text")
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
MOST_FAULTS = 20
MOST_ALIKE = 3  # faults with the same reason; a file with the wrong columns is one mistake, not one a row

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_SHAREGPT_ROLES = {**_ROLES, "human": "user", "gpt": "assistant", "function": "tool", "observation": "tool"}
# the column of each part under the names that published data sets use, the first present one counts
_COLUMNS = {
    "messages": ("messages", "conversations"),
    "prompt": ("prompt", "question", "instruction"),
    "completion": ("completion", "response", "answer", "output"),
    "text": ("text", "content"),
}
_PARTS = {"messages": ("messages",), "prompt_completion": ("prompt", "completion"), "text": ("text",)}
_CHUNK = 1 << 20  # characters


class _BadRow(Exception):
    """Why a row cannot be used; reading goes on with the next one."""


class _BadFile(Exception):
    """Why nothing more can be read of a file. `line` is 0 where it is unknown."""

    def __init__(self, reason: str, line: int = 0, hint: str = "") -> None:
        super().__init__(reason)
        self.line = line
        self.hint = hint


class _Item(NamedTuple):
    where: str  # file:line
    record: object  # as the file holds it, or a _BadRow


@dataclass(frozen=True)
class Lengths:
    """Lengths of rows. A bucket (upper, count) counts the rows longer than half of `upper`, up to `upper`."""

    smallest: int
    largest: int
    total: int
    buckets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DataReport:
    """What a check of data files found."""

    rows: int  # usable ones
    bad_rows: int
    format: str  # messages, prompt_completion or text; "" where no row could be read
    faults: tuple[Fault, ...]  # at most MOST_FAULTS, MOST_ALIKE of a reason, in the order of the files
    duplicates: int  # rows equal to an earlier one
    sha256: str  # of the files' contents in their order; names do not matter
    characters: Lengths
    tokens: Lengths | None  # where a tokenizer was given; without the chat template's own tokens
    longer_than_limit: int | None  # rows with more tokens than the limit, where both were given


def read_rows(
    paths: Sequence[Path | str], format: str = "auto", columns: Mapping[str, str | None] | None = None
) -> Iterator[Row]:
    """The rows of the files, in order.

    `columns` maps messages, prompt, completion or text to a column's name; None stands for the usual name.
    Raises InputError (file:line and reason) at the first row that cannot be used; UserError without pyarrow.
    """
    shape = _Shape(format, columns)
    for path in map(Path, paths):
        try:
            for item in _items(path):
                try:
                    row = shape.row(item.record)
                except _BadRow as bad:
                    raise InputError([Fault(item.where, str(bad))]) from None
                yield row
        except _BadFile as bad:
            raise InputError([_file_fault(path, bad)]) from None


def check_files(
    paths: Sequence[Path | str],
    format: str = "auto",
    columns: Mapping[str, str | None] | None = None,
    *,
    count_tokens: Callable[[str], int] | None = None,
    limit_tokens: int | None = None,
) -> DataReport:
    """Read all rows and report what is wrong with them; 8 bytes of memory a row.

    Raises UserError where a reader is missing (Parquet without pyarrow); everything else becomes a fault.
    """
    shape = _Shape(format, columns)
    faults: list[Fault] = []
    alike: Counter[str] = Counter()
    bad_rows = too_long = 0
    seen = array("Q")
    characters, tokens = _Lengths(), _Lengths()
    whole = hashlib.sha256()
    for path in map(Path, paths):
        before = len(seen) + bad_rows
        try:
            whole.update(_sha256(path))
            for item in _items(path):
                try:
                    row = shape.row(item.record)
                except _BadRow as bad:
                    bad_rows += 1
                    alike[str(bad)] += 1
                    if len(faults) < MOST_FAULTS and alike[str(bad)] <= MOST_ALIKE:
                        faults.append(Fault(item.where, str(bad)))
                    continue
                text = row_text(row)
                seen.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
                characters.add(len(text))
                if count_tokens is not None:
                    count = count_tokens(text)
                    tokens.add(count)
                    too_long += limit_tokens is not None and count > limit_tokens
            if len(seen) + bad_rows == before:
                raise _BadFile("holds no rows")
        except _BadFile as bad:
            faults.append(_file_fault(path, bad))
    return DataReport(
        rows=len(seen),
        bad_rows=bad_rows,
        format=shape.kind,
        faults=tuple(_counted(faults[:MOST_FAULTS], alike)),
        duplicates=_repeated(seen),
        sha256=whole.hexdigest(),
        characters=characters.result(),
        tokens=tokens.result() if count_tokens is not None else None,
        longer_than_limit=too_long if count_tokens is not None and limit_tokens is not None else None,
    )


def _counted(faults: list[Fault], alike: Counter[str]) -> Iterator[Fault]:
    """The faults; the last one listed of a reason says how many more there are."""
    listed = Counter(fault.message for fault in faults)
    shown: Counter[str] = Counter()
    for fault in faults:
        shown[fault.message] += 1
        more = alike[fault.message] - listed[fault.message]
        last = shown[fault.message] == listed[fault.message]
        yield fault._replace(hint=f"{more} more rows like this") if last and more > 0 else fault


def row_text(row: Row) -> str:
    """All text of a row, its parts on lines of their own: what lengths and duplicates are measured by."""
    if "messages" in row:
        return "\n".join(f"{turn['role']}\n{turn['content']}" for turn in row["messages"])
    return "\n".join(row.values())


def hash_parameters(parameters: Mapping[str, Any]) -> str:
    """SHA-256 of a generator's parameters (JSON values); the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@dataclass
class _Shape:
    """Which columns hold the parts of a row; with format "auto" the first usable row decides."""

    format: str
    columns: Mapping[str, str | None] | None
    kind: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r} is not one of {', '.join(FORMATS)}")

    def row(self, record: object) -> Row:
        """The record in one of the three shapes. Raises _BadRow."""
        if isinstance(record, _BadRow):
            raise record
        if not isinstance(record, dict):
            raise _BadRow(f"is {_kind(record)}, not an object with named columns")
        kind, names = (self.kind, self.names) if self.kind else self._recognise(record)
        for part, name in names.items():
            if name not in record:
                raise _BadRow(f"has no column {name!r} for the {part}; it has {_listed(record)}")
        if kind == "messages":
            row: Row = {"messages": _messages(record[names["messages"]])}
        else:
            row = {part: _text(record[name], name) for part, name in names.items()}
            if names.get("prompt") == "instruction" and record.get("input"):  # Alpaca's second half of the prompt
                row["prompt"] += "\n\n" + _text(record["input"], "input")
        self.kind, self.names = kind, names
        return row

    def _recognise(self, record: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        given = {part: name for part, name in (self.columns or {}).items() if name}
        for kind, parts in _PARTS.items():
            if self.format not in ("auto", kind) or (given and not any(part in given for part in parts)):
                continue
            names = {part: given.get(part) or _first(record, _COLUMNS[part]) for part in parts}
            if all(names.values()):
                return kind, names
        wanted = (
            self.format.replace("_", " and ") if self.format != "auto" else "messages, prompt and completion, or text"
        )
        raise _BadRow(f"has no columns for {wanted}; it has {_listed(record)} (name them under data.columns)")


def _first(record: Mapping[str, Any], names: Sequence[str]) -> str:
    return next((name for name in names if name in record), "")


def _listed(record: Mapping[str, Any]) -> str:
    names = [repr(name) for name in record]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "none"


def _messages(value: object) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise _BadRow(f"messages is {_kind(value)}, not a list of messages" if value else "messages is empty")
    turns = []
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            raise _BadRow(f"message {number} is {_kind(turn)}, not an object with role and content")
        sharegpt = "from" in turn and "role" not in turn
        role, key = (turn["from"], "value") if sharegpt else (turn.get("role"), "content")
        known = (_SHAREGPT_ROLES if sharegpt else _ROLES).get(role) if isinstance(role, str) else None
        if known is None:
            raise _BadRow(f"message {number} has the role {role!r}, not system, user, assistant or tool")
        if key not in turn:
            raise _BadRow(f"message {number} has no {key}")
        turns.append({"role": known, "content": _text(turn[key], f"{key} of message {number}")})
    if turns[-1]["role"] != "assistant":
        raise _BadRow(f"ends with the {turns[-1]['role']}'s message, not with the assistant's")
    return turns


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise _BadRow(f"{name} is {_kind(value)}, not a text")
    if not value.strip():
        raise _BadRow(f"{name} is empty")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _BadRow(f"{name} holds half of a surrogate pair, which no tokenizer takes") from None
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "a text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def _items(path: Path) -> Iterator[_Item]:
    """The records of a file and where they stand. Raises _BadFile."""
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower())
    if reader is None:
        raise _BadFile(f"is none of {', '.join(SUFFIXES)}", hint="convert it, or rename it if it is one of these")
    try:
        yield from reader(path)
    except OSError as error:
        raise _BadFile(f"cannot be read: {error.strerror or error}") from None


def _file_fault(path: Path, bad: _BadFile) -> Fault:
    return Fault(f"{path}:{bad.line}" if bad.line else str(path), str(bad), bad.hint)


def _lines(path: Path) -> Iterator[tuple[int, str | _BadRow]]:
    """Lines with their ends, numbered from 1; a line that is not UTF-8 is a _BadRow."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, _BadRow(f"is not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}")


def _parse(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return _BadRow(f"is not JSON: {error.msg} at column {error.pos + 1}")
    except (RecursionError, ValueError) as error:  # too deep; a number of more than 4,300 digits
        return _BadRow(f"is not JSON that can be read: {error}")


def _jsonl(path: Path) -> Iterator[_Item]:
    for number, line in _lines(path):
        if isinstance(line, _BadRow):
            yield _Item(f"{path}:{number}", line)
        elif line.strip():
            yield _Item(f"{path}:{number}", _parse(line.rstrip("\r\n")))


def _json(path: Path) -> Iterator[_Item]:
    """The objects of one JSON list, each decoded alone so that the file need not fit into memory."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        window = _Window(file.read, path)
        opening = window.next()
        if opening == "{":  # one object a line under the wrong suffix
            yield from _jsonl(path)
            return
        if opening != "[":
            raise _BadFile(
                "is not a list of objects", window.line, "write [{...}, {...}], or one object a line in a .jsonl"
            )
        window.at += 1
        first = True
        while (char := window.next()) != "]":
            if not first:
                if char != ",":
                    raise _BadFile("is not JSON: ',' or ']' is missing", window.line)
                window.at += 1
                char = window.next()
            first = False
            if char != "{":
                raise _BadFile(
                    "is not a list of objects" if char else "is not JSON: it ends within the list", window.line
                )
            where = f"{path}:{window.line}"
            yield _Item(where, window.decode(decoder))
        window.at += 1
        if window.next():
            raise _BadFile("is not JSON: there is more after the list", window.line)


class _Window:
    """The part of a text file that is being decoded; it grows until an object is whole, then moves on."""

    def __init__(self, read: Callable[[int], str], path: Path) -> None:
        self.read = read
        self.path = path
        self.text = ""
        self.at = 0
        self._counted = 0
        self._line = 1

    @property
    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def next(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def decode(self, decoder: json.JSONDecoder) -> object:
        """The object that starts here; more is read while it is not whole."""
        while True:
            try:
                record, self.at = decoder.raw_decode(self.text, self.at)
                return record
            except json.JSONDecodeError as error:
                # at the end of the window the object may only be cut; anywhere else it is wrong
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - 16
                reason, offset = error.msg, error.pos - self.at
            except (RecursionError, ValueError) as error:
                cut, reason, offset = False, str(error), 0
            if not cut or not self.more():
                line = self.line + self.text.count("\n", self.at, self.at + offset)
                raise _BadFile(f"is not JSON: {reason}", line)

    def more(self) -> bool:
        """Read on, at least doubling what is not decoded yet; what is decoded is dropped."""
        rest = self.text[self.at :]
        self._line = self.line
        try:
            piece = self.read(max(_CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise _BadFile(f"is not UTF-8: byte 0x{error.object[error.start]:02x}", self._line) from None
        self.text, self.at, self._counted = rest + piece, 0, 0
        return bool(piece)


def _csv(path: Path) -> Iterator[_Item]:
    csv.field_size_limit(1 << 30)  # the default, 128 KiB, is less than one long document

    def decoded() -> Iterator[str]:
        for number, line in _lines(path):
            if isinstance(line, _BadRow):
                raise _BadFile(str(line), number)
            yield line

    reader = csv.reader(decoded(), strict=True)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _BadFile(f"is not CSV: {error}", number) from None
        if not cells:
            continue
        if not header:
            header = cells
            if len(set(header)) < len(header):
                raise _BadFile("names a column twice", number)
        elif len(cells) != len(header):
            bad = _BadRow(f"has {len(cells)} cells, the header has {len(header)}")
            yield _Item(f"{path}:{number}", bad)
        else:
            yield _Item(f"{path}:{number}", dict(zip(header, cells, strict=True)))


def _parquet(path: Path) -> Iterator[_Item]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "Parquet files need pyarrow, which is not installed",
            where=str(path),
            hint="pip install 'swiftlaunch[data]', or convert the file to .jsonl",
        ) from None
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    number += 1
                    yield _Item(f"{path}:{number}", record)
    except pyarrow.ArrowException as error:
        raise _BadFile(f"is not Parquet: {str(error).splitlines()[0]}") from None


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise _BadFile(f"cannot be read: {error.strerror or error}") from None
    return digest.digest()


def _repeated(hashes: array[int]) -> int:
    """How many values equal an earlier one."""
    ordered = sorted(hashes)
    return sum(one == other for one, other in itertools.pairwise(ordered))


class _Lengths:
    """Collects lengths by powers of two."""

    def __init__(self) -> None:
        self._smallest = self._largest = self._total = 0
        self._buckets: Counter[int] = Counter()

    def add(self, length: int) -> None:
        self._smallest = min(self._smallest, length) if self._buckets else length
        self._largest = max(self._largest, length)
        self._total += length
        self._buckets[max(length - 1, 0).bit_length()] += 1

    def result(self) -> Lengths:
        buckets = tuple((1 << power, count) for power, count in sorted(self._buckets.items()))
        return Lengths(self._smallest, self._largest, self._total, buckets)
