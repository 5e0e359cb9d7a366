"""The line of every key of a TOML text, which tomllib does not tell."""

from __future__ import annotations

import bisect
import re
import tomllib

Loc = tuple[str | int, ...]  # keys and list indices, from the top

BARE = re.compile(r"[A-Za-z0-9_-]+")  # keys that need no quotes


def key_lines(text: str) -> dict[Loc, int]:
    """The line (from 1) of every table, key and list item of a valid TOML document."""
    return _Keys(text).lines


class _Keys:
    """A walk over TOML that tomllib has accepted: only ends of values are looked for, nothing is checked."""

    def __init__(self, text: str) -> None:
        self.text = text + "\n"
        self.at = 0
        self.lines: dict[Loc, int] = {}
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._tables: dict[Loc, int] = {}  # arrays of tables: index of the newest
        table: Loc = ()
        self._blank()
        while self.at < len(self.text):
            start = self.at
            if self.text.startswith("[[", start):
                self.at += 2
                table = self._header(self._key(), start, array=True)
                self.at = self.text.index("]]", self.at) + 2
            elif self.text[start] == "[":
                self.at += 1
                table = self._header(self._key(), start, array=False)
                self.at = self.text.index("]", self.at) + 1
            else:
                self._pair(table)
            self._blank()

    def _note(self, loc: Loc, position: int) -> None:
        self.lines.setdefault(loc, bisect.bisect_right(self._starts, position))

    def _header(self, key: list[str], position: int, *, array: bool) -> Loc:
        loc: Loc = ()
        for number, part in enumerate(key):
            loc = (*loc, part)
            last = number == len(key) - 1
            if not (array and last):
                self._note(loc, position)
            if array and last:
                self._note(loc, position)
                self._tables[loc] = self._tables.get(loc, -1) + 1
            if loc in self._tables:
                loc = (*loc, self._tables[loc])
                self._note(loc, position)
        return loc

    def _pair(self, table: Loc) -> None:
        start = self.at
        loc = table
        for part in self._key():
            loc = (*loc, part)
            self._note(loc, start)
        self.at = self.text.index("=", self.at) + 1
        self._value(loc)

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._spaces()
            start = self.at
            if self.text[start] in "\"'":
                self._string()
                parts.append(str(tomllib.loads(f"k = {self.text[start : self.at]}")["k"]))
            else:
                match = BARE.match(self.text, start)
                assert match
                self.at = match.end()
                parts.append(match[0])
            self._spaces()
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _value(self, loc: Loc) -> None:
        self._spaces()
        opening = self.text[self.at]
        if opening in "\"'":
            self._string()
        elif opening == "[":
            self._items(loc, "]")
        elif opening == "{":
            self._items(loc, "}")
        else:
            while self.text[self.at] not in ",]}#\n":
                self.at += 1

    def _items(self, loc: Loc, closing: str) -> None:
        self.at += 1
        index = 0
        while True:
            self._blank()
            if self.text[self.at] == closing:
                self.at += 1
                return
            if self.text[self.at] == ",":
                self.at += 1
            elif closing == "]":
                self._note((*loc, index), self.at)
                self._value((*loc, index))
                index += 1
            else:
                self._pair(loc)

    def _string(self) -> None:
        quote = self.text[self.at]
        if self.text.startswith(quote * 3, self.at):
            self.at = self._end_of_string(quote * 3, self.at + 3)
            while self.text[self.at] == quote:  # up to two quotes may stand before the closing three
                self.at += 1
        else:
            self.at = self._end_of_string(quote, self.at + 1)

    def _end_of_string(self, closing: str, at: int) -> int:
        while not self.text.startswith(closing, at):
            at += 2 if self.text[at] == "\\" and closing[0] == '"' else 1
        return at + len(closing)

    def _spaces(self) -> None:
        while self.text[self.at] in " \t":
            self.at += 1

    def _blank(self) -> None:
        while self.at < len(self.text):
            if self.text[self.at] in " \t\n\r":
                self.at += 1
            elif self.text[self.at] == "#":
                self.at = self.text.index("\n", self.at)
            else:
                return
