"""Take values out of a parsed TOML table, collecting a fault for each thing that is wrong with it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import Fault
from launcher.refusals import is_ours, looks_secret, sbatch_refusal
from launcher.units import parse_mib, parse_minutes

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"^\s*([A-Za-z0-9_\"'. -]+?)\s*=")


@dataclass
class Reader:
    """Where the faults of one file gather; `home` is what `~` stands for."""

    path: Path
    lines: dict[str, int]  # TOML path -> line
    home: Path
    faults: list[Fault] = field(default_factory=list)

    def fault(self, path: str, message: str, hint: str = "") -> None:
        """Note a fault at a TOML path ("node.gpus"), with the line of it or of the nearest table around it."""
        around = path
        while around and around not in self.lines:
            around = re.sub(r"(\.[^.\[]*|\[\d+\]|^[^.\[]*)$", "", around)
        line = f":{self.lines[around]}" if around else ""
        self.faults.append(Fault(f"{self.path}{line}: {path}", message, hint))


class Table:
    """One TOML table. A getter returns its default (or an empty value) after noting a fault."""

    def __init__(self, reader: Reader, data: dict[str, Any], path: str) -> None:
        self._reader = reader
        self._data = data
        self._path = path
        self._asked: list[str] = []

    def has(self, key: str) -> bool:
        """Whether the file says anything about the key."""
        return key in self._data

    def fault(self, key: str, message: str, hint: str = "") -> None:
        """Note a fault of one of this table's keys."""
        self._reader.fault(f"{self._path}.{key}" if self._path else key, message, hint)

    def close(self) -> None:
        """Refuse every key that nobody asked for."""
        for key in self._data:
            if key not in self._asked:
                self.fault(key, "unknown key", close_hint(key, self._asked))

    def text(
        self,
        key: str,
        *,
        default: str = "",
        required: bool = False,
        choices: Sequence[str] = (),
        pattern: str = "",
        hint: str = "",
    ) -> str:
        """One line of text; `pattern` must match all of it."""
        value = self._take(key, str, "a text", required)
        if value is None:
            return default
        if not value.strip() or not value.isprintable():
            self.fault(key, "must be one line of printable text, not empty")
        elif choices and value not in choices:
            self.fault(key, f"{value!r} is not known", close_hint(value, choices))
        elif pattern and not re.fullmatch(pattern, value):
            self.fault(key, f"{value!r} does not fit", hint or f"it must match {pattern}")
        else:
            return str(value)
        return default

    def texts(self, key: str, *, required: bool = False) -> tuple[str, ...]:
        """A list of texts."""
        value = self._take(key, list, "a list of texts", required)
        if value is None:
            return ()
        for index, item in enumerate(value):
            if not isinstance(item, str) or not item.strip() or not item.isprintable():
                self.fault(f"{key}[{index}]", "must be one line of printable text, not empty")
                return ()
        if required and not value:
            self.fault(key, "is empty")
        return tuple(value)

    def integer(self, key: str, *, default: int | None = None, required: bool = False, minimum: int = 0) -> int | None:
        """A whole number of at least `minimum`."""
        value = self._take(key, int, "a whole number", required)
        if value is None:
            return default
        if value < minimum:
            self.fault(key, f"{value} is less than {minimum}")
            return default
        return int(value)

    def boolean(self, key: str) -> bool:
        """true or false; false where it is left out."""
        return bool(self._take(key, bool, "true or false", required=False))

    def size(self, key: str, *, required: bool = False) -> int | None:
        """Memory in MiB: 512, "24G"."""
        return self._parsed(key, parse_mib, required)

    def minutes(self, key: str) -> int | None:
        """A duration in minutes: 90, "1h30m", "1-12:00:00"."""
        return self._parsed(key, parse_minutes, required=False)

    def absolute(self, key: str, *, required: bool = False) -> str:
        """An absolute path; a leading `~` stands for the home directory."""
        value = self.expand(self.text(key, required=required))
        if value and not value.startswith("/"):
            self.fault(key, f"{value!r} is not absolute", "start it with / or ~/; variables are not expanded")
        return value.rstrip("/") or value  # "/" alone stays

    def mounts(self, key: str) -> tuple[str, ...]:
        """Container mounts, "source:target" or "source:target:options", both absolute."""
        mounts = tuple(":".join(self.expand(part) for part in text.split(":")) for text in self.texts(key))
        for index, mount in enumerate(mounts):
            parts = mount.split(":")
            if len(parts) not in (2, 3) or not all(part.startswith("/") for part in parts[:2]):
                self.fault(f"{key}[{index}]", f"{mount!r} is no mount", 'write "/source:/target"')
                return ()
        return mounts

    def sbatch_words(self, key: str) -> tuple[str, ...]:
        """Further sbatch options, a word each, long form."""
        words = self.texts(key)
        for index, word in enumerate(words):
            reason, hint = sbatch_refusal(word)
            if reason:
                self.fault(f"{key}[{index}]", f"{word!r} {reason}", hint)
        return words

    def variables(self) -> tuple[tuple[str, str], ...]:
        """This whole table as environment variables, by name; secrets and the launcher's own are refused."""
        pairs = []
        for name, value in sorted(self._data.items()):
            self._asked.append(name)
            if not _VARIABLE.fullmatch(name):
                self.fault(name, "is not a name of an environment variable")
            elif looks_secret(name):
                self.fault(
                    name,
                    "looks like a secret, and what stands here is written into job scripts",
                    f"name it in the recipe (secrets = [{name!r}]) and export it in your shell",
                )
            elif is_ours(name):
                self.fault(name, "is set by the launcher or by Slurm")
            elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
                self.fault(name, "must be a text or a number", 'write true as "1" or "true"')
            elif not str(value).isprintable():
                self.fault(name, "must be one line of printable text")
            else:
                pairs.append((name, str(value)))
        return tuple(pairs)

    def table(self, key: str, *, required: bool = False) -> Table:
        """A table below this one; empty where it is left out."""
        value = self._take(key, dict, "a table", required)
        return Table(self._reader, value or {}, f"{self._path}.{key}" if self._path else key)

    def tables(self, key: str) -> list[Table]:
        """An array of tables."""
        value = self._take(key, list, f"tables, each under [[{key}]]", required=False) or []
        if not all(isinstance(item, dict) for item in value):
            self.fault(key, f"must be tables, each under [[{key}]]")
            return []
        return [Table(self._reader, item, f"{key}[{index}]") for index, item in enumerate(value)]

    def named(self, known: Sequence[str], what: str) -> list[tuple[str, Table]]:
        """The tables below this one, by name; a name that is not `known` is a fault."""
        found = []
        for key in self._data:
            if key in known:
                found.append((key, self.table(key)))
            else:
                self.fault(key, f"unknown {what}", close_hint(key, known))
        return found

    def expand(self, text: str) -> str:
        """The text with a leading `~` replaced by the home directory."""
        return str(self._reader.home / text[2:]) if text.startswith("~/") else text

    def _parsed(self, key: str, parse: Callable[[str | int], int], required: bool) -> int | None:
        value = self._take(key, (str, int), "a text or a whole number", required)
        if value is None:
            return None
        try:
            return parse(value)
        except ValueError as error:
            self.fault(key, str(error))
            return None

    def _take(self, key: str, kind: type | tuple[type, ...], what: str, required: bool) -> Any:
        self._asked.append(key)
        value = self._data.get(key)
        if value is None:
            if required:
                self.fault(key, f"is missing; it must be {what}")
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fault(key, f"must be {what}, not {value!r}")
            return None
        return value


def close_hint(word: str, known: Iterable[str]) -> str:
    """ "did you mean X?", or the known words."""
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(names)


def line_numbers(text: str) -> dict[str, int]:
    """TOML path -> line where it is set. Good enough for messages: keys of inline tables have their table's line."""
    lines: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = re.sub(r"[\"' ]", "", header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                table = f"{table}[{counts[table]}]"
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            name = re.sub(r"[\"' ]", "", key[1])
            lines.setdefault(f"{table}.{name}" if table else name, number)
    return lines
