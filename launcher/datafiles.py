"""Files of rows, read as streams of records: .jsonl, .json, .csv, .parquet.

Standard library only; pyarrow is loaded for Parquet alone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from launcher.errors import Fault, UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_CHUNK = 1 << 20  # characters


class BadRow(Exception):
    """Why a row cannot be used; reading goes on with the next one."""


class BadFile(Exception):
    """Why nothing more can be read of a file. `line` is 0 where it is unknown."""

    def __init__(self, reason: str, line: int = 0, hint: str = "") -> None:
        super().__init__(reason)
        self.line = line
        self.hint = hint


class Item(NamedTuple):
    where: str  # file:line
    record: object  # as the file holds it, or a BadRow


def records(path: Path) -> Iterator[Item]:
    """The records of a file and where they stand. Raises BadFile, and OSError where it cannot be read."""
    reader = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower())
    if reader is None:
        raise BadFile(f"is none of {', '.join(SUFFIXES)}", hint="convert it, or rename it if it is one of these")
    yield from reader(path)


def file_fault(path: Path, bad: BadFile) -> Fault:
    """Where and why a file cannot be read on, for the user."""
    return Fault(f"{path}:{bad.line}" if bad.line else str(path), str(bad), bad.hint)


def _lines(path: Path) -> Iterator[tuple[int, str | BadRow]]:
    """Lines with their ends, numbered from 1; a line that is not UTF-8 is a BadRow."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                yield number, BadRow(f"is not UTF-8: byte 0x{raw[error.start]:02x} at column {error.start + 1}")


def parse(text: str) -> object:
    """The JSON in a text, or a BadRow that says what is wrong with it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return BadRow(f"is not JSON: {error.msg} at column {error.pos + 1}")
    except (RecursionError, ValueError) as error:  # too deep; a number of more than 4,300 digits
        return BadRow(f"is not JSON that can be read: {error}")


def _jsonl(path: Path) -> Iterator[Item]:
    for number, line in _lines(path):
        if isinstance(line, BadRow):
            yield Item(f"{path}:{number}", line)
        elif line.strip():
            yield Item(f"{path}:{number}", parse(line.rstrip("\r\n")))


def _json(path: Path) -> Iterator[Item]:
    """The objects of one JSON list, each decoded alone so that the file need not fit into memory."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        window = _Window(file.read, path)
        opening = window.next()
        if opening == "{":  # one object a line under the wrong suffix
            yield from _jsonl(path)
            return
        if opening != "[":
            raise BadFile(
                "is not a list of objects", window.line, "write [{...}, {...}], or one object a line in a .jsonl"
            )
        window.at += 1
        first = True
        while (char := window.next()) != "]":
            if not first:
                if char != ",":
                    raise BadFile("is not JSON: ',' or ']' is missing", window.line)
                window.at += 1
                char = window.next()
            first = False
            if char != "{":
                raise BadFile(
                    "is not a list of objects" if char else "is not JSON: it ends within the list", window.line
                )
            where = f"{path}:{window.line}"
            yield Item(where, window.decode(decoder))
        window.at += 1
        if window.next():
            raise BadFile("is not JSON: there is more after the list", window.line)


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
                raise BadFile(f"is not JSON: {reason}", line)

    def more(self) -> bool:
        """Read on, at least doubling what is not decoded yet; what is decoded is dropped."""
        rest = self.text[self.at :]
        self._line = self.line
        try:
            piece = self.read(max(_CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise BadFile(f"is not UTF-8: byte 0x{error.object[error.start]:02x}", self._line) from None
        self.text, self.at, self._counted = rest + piece, 0, 0
        return bool(piece)


def _csv(path: Path) -> Iterator[Item]:
    csv.field_size_limit(1 << 30)  # the default, 128 KiB, is less than one long document

    def decoded() -> Iterator[str]:
        for number, line in _lines(path):
            if isinstance(line, BadRow):
                raise BadFile(str(line), number)
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
            raise BadFile(f"is not CSV: {error}", number) from None
        if not cells:
            continue
        if not header:
            header = cells
            if len(set(header)) < len(header):
                raise BadFile("names a column twice", number)
        elif len(cells) != len(header):
            bad = BadRow(f"has {len(cells)} cells, the header has {len(header)}")
            yield Item(f"{path}:{number}", bad)
        else:
            yield Item(f"{path}:{number}", dict(zip(header, cells, strict=True)))


def _parquet(path: Path) -> Iterator[Item]:
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
                    yield Item(f"{path}:{number}", record)
    except pyarrow.ArrowException as error:
        raise BadFile(f"is not Parquet: {str(error).splitlines()[0]}") from None
