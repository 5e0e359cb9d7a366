"""Where values come from: TOML files that extend each other, `--set` words, and the line of every key."""

from __future__ import annotations

import datetime
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from launcher.errors import Fault, InputError
from launcher.recipe.fields import shown, unprintable
from launcher.recipe.positions import BARE, Loc, key_lines

Table = dict[str, Any]

LARGEST_FILE = 1 << 18  # bytes; a recipe is a page or two
_AT = re.compile(r"^(.*) \(at (?:line (\d+), column (\d+)|end of document)\)$", re.DOTALL)

# One of the two takes the place of the other when a file or --set overlays another file.
_EXCLUSIVE = (("model", "name", "path"), ("train", "steps", "epochs"))


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file and line, or `--set`."""

    label: str
    line: int
    folder: Path  # relative paths of this value start here

    def where(self, loc: Loc) -> str:
        """ "recipe.toml:12 train.learning_rate" """
        place = f"{self.label}:{self.line}" if self.line else self.label
        return f"{place} {dotted(loc)}".rstrip()


@dataclass
class Source:
    """The merged table and the origin of each key in it."""

    data: Table
    origins: dict[Loc, Origin]
    fallback: Origin
    faults: list[Fault] = field(default_factory=list)  # --set words that are no assignments

    def origin(self, loc: Loc) -> Origin:
        """The origin of the value at `loc`, or of the closest table around it."""
        for end in range(len(loc), 0, -1):
            if found := self.origins.get(loc[:end]):
                return found
        return self.fallback

    def where(self, loc: Loc) -> str:
        return self.origin(loc).where(loc)


def dotted(loc: Loc) -> str:
    """("data", "train", 0) -> "data.train[0]"; keys that are not bare are quoted as TOML does."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if BARE.fullmatch(part) else shown(part))
    return text


def read_source(path: Path, overrides: Sequence[str], text: str = "") -> tuple[Source, str]:
    """The recipe file with what it extends and what `--set` says, and the file's own text.

    With `text`, that is what stands in the file: then nobody looks for it, and its name is only for messages.

    Raises InputError: files that cannot be read, TOML that is not TOML, circles of `extends`.
    """
    chain: list[tuple[Path, Table, dict[Loc, int]]] = []
    own = ""
    seen: dict[Path, Path] = {}
    current: Path | None = path
    asked_by = ""
    while current is not None:
        content = text if text and not chain else _read(current, asked_by)
        identity = Path(os.path.realpath(current))
        if identity in seen:
            circle = " -> ".join(_label(name) for name in [*seen.values(), current])
            message = f"recipes extend each other in a circle: {circle}"
            raise InputError([Fault(asked_by, message, "remove one extends")])
        seen[identity] = current
        own = own or content
        table, lines = parse(content, _label(current))
        chain.append((current, table, lines))
        base = table.get("extends")
        asked_by = f"{_label(current)}:{lines.get(('extends',), 1)} extends"
        if base is not None and (not isinstance(base, str) or not base or any(map(unprintable, base))):
            raise InputError([Fault(asked_by, f"{shown(base)} is not a path", 'write extends = "base.toml"')])
        current = Path(os.path.normpath(current.parent / os.path.expanduser(base))) if base else None
    fallback = Origin(_label(path), 0, path.parent)
    source = Source({}, {}, fallback)
    for file, table, lines in reversed(chain):
        table.pop("extends", None)
        _overlay(source, table, {loc: Origin(_label(file), line, file.parent) for loc, line in lines.items()})
    _override(source, overrides, path.parent)
    return source, own


def table_source(table: Mapping[str, Any], overrides: Sequence[str], path: Path) -> Source:
    """A recipe that is a table already, with what `--set` says; `path` is what messages call it."""
    source = Source(deepcopy(dict(table)), {}, Origin(_label(path), 0, path.parent))
    _override(source, overrides, Path.cwd())
    return source


def parse(text: str, label: str) -> tuple[Table, dict[Loc, int]]:
    """The TOML table in `text` and the line of each key. Raises InputError with line and column."""
    try:
        return tomllib.loads(text), key_lines(text)
    except tomllib.TOMLDecodeError as error:
        match = _AT.match(str(error))
        message = match[1] if match else str(error)
        place = f"{label}:{match[2]}:{match[3]}" if match and match[2] else f"{label} (end of file)"
        hint = 'texts need quotes: key = "value"' if message == "Invalid value" else ""
        raise InputError([Fault(place, f"not valid TOML: {message}", hint)]) from None
    except RecursionError:
        raise InputError([Fault(label, "nested too deeply for a recipe")]) from None


def _label(path: Path) -> str:
    """A path for a message; control characters in file names are escaped."""
    return shown(str(path)) if any(map(unprintable, str(path))) else str(path)


def _read(path: Path, asked_by: str) -> str:
    where = asked_by or _label(path)
    what = f"{_label(path)}: " if asked_by else ""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError([Fault(where, f"{what}is a folder, not a recipe", _recipes_in(path))])
        if not stat.S_ISREG(status.st_mode):
            raise InputError([Fault(where, f"{what}is not a regular file")])
        if status.st_size > LARGEST_FILE:
            raise InputError([Fault(where, f"{what}is larger than 256 KiB, not a recipe")])
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError([Fault(where, f"{what}no such file", _recipes_in(path.parent, path.name))]) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError([Fault(where, f"{what}cannot be read: {reason}")]) from None
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        hint = "save it as UTF-8 (iconv -f LATIN1 -t UTF-8)"
        raise InputError([Fault(f"{_label(path)}:{line}", f"not UTF-8: byte 0x{raw[error.start]:02x}", hint)]) from None


def _recipes_in(folder: Path, name: str = "") -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix == ".toml")
    except OSError:
        return ""
    found = get_close_matches(name, names, n=1) if name else names[:3]
    return f"did you mean {' or '.join(str(folder / one) for one in found)}?" if found else ""


def _overlay(source: Source, table: Table, origins: dict[Loc, Origin]) -> None:
    """Put `table` over the source: tables merge, lists and plain values take the place of what was there."""
    for loc in _displaced(source.data, table):
        _remove(source, loc)
    _merge(source, source.data, table, (), origins)


def _displaced(below: Table, above: Table) -> Iterator[Loc]:
    """What a choice in `above` makes meaningless in `below`, so that --set and `extends` can change the choice."""
    for section, table in above.items():
        old = below.get(section)
        if not isinstance(table, dict) or not isinstance(old, dict):
            continue
        changed = {key: value for key, value in table.items() if value != old.get(key)}
        for one, other in (pair for name, *pair in _EXCLUSIVE if name == section):
            if (one in table) != (other in table):
                yield (section, other if one in table else one)
        if section == "data" and "source" in changed:
            yield (section,)
        if section == "train" and changed.get("tuner") == "full":
            yield (section, "lora")
        if section == "train" and "schedule" in changed:
            yield (section, "decay_steps")
        if section == "quantize" and "method" in changed:
            yield from ((section, key) for key in ("bits", "group_size", "calibration_samples"))


def _merge(source: Source, target: Table, table: Table, at: Loc, origins: dict[Loc, Origin]) -> None:
    for key, value in table.items():
        loc = (*at, key)
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            source.origins[loc] = origins[loc]
            _merge(source, target[key], value, loc, origins)
            continue
        if key in target:
            _remove(source, loc)
        target[key] = value
        for name in (loc, *_locs(value, loc)):
            source.origins[name] = origins[name]


def _remove(source: Source, loc: Loc) -> None:
    table: Any = source.data
    for part in loc[:-1]:
        table = table.get(part) if isinstance(table, dict) else None
    if isinstance(table, dict):
        table.pop(loc[-1], None)
    for name in [name for name in source.origins if name[: len(loc)] == loc]:
        del source.origins[name]


def _override(source: Source, overrides: Sequence[str], folder: Path) -> None:
    for word in overrides:
        try:
            loc, value = parse_override(word)
        except ValueError as error:
            source.faults.append(Fault(f"--set {shown(word)}", str(error), "write --set section.key=value"))
            continue
        if loc == ("extends",):
            source.faults.append(Fault("--set extends", "only a file can extend another", "write it into the recipe"))
            continue
        _set(source, loc, value, Origin("--set", 0, folder))


def _set(source: Source, loc: Sequence[str], value: Any, origin: Origin) -> None:
    table: Any = value
    for part in reversed(loc):
        table = {part: table}
    _overlay(source, table, dict.fromkeys(_locs(table), origin))


def with_values(source: Source, values: Mapping[str, Any], origin: Callable[[str], Origin]) -> Source:
    """A copy of `source` as `--set` with these values, by TOML path, would leave it; `origin` of a path's value."""
    copy = Source(deepcopy(source.data), dict(source.origins), source.fallback)
    for key, value in values.items():
        _set(copy, key.split("."), list(value) if isinstance(value, tuple) else value, origin(key))
    return copy


def parse_override(word: str) -> tuple[tuple[str, ...], Any]:
    """("train.steps=60") -> (("train", "steps"), 60). A value that is not TOML is taken as a text.

    Raises ValueError where there is no key or no "=".
    """
    key, equals, value = word.partition("=")
    key = key.strip()
    if not equals:
        raise ValueError("has no '='")
    try:
        parsed: Any = tomllib.loads(f"{key} = 0") if not any(map(unprintable, key)) else {}
    except tomllib.TOMLDecodeError:
        parsed = {}
    loc: list[str] = []
    while isinstance(parsed, dict):
        if len(parsed) != 1:
            raise ValueError(f"{shown(key)} is not a key")
        part, parsed = next(iter(parsed.items()))
        loc.append(part)
    return tuple(loc), _value(value)


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    value = parsed["value"]
    # a second line would be a second key; a date is a text to every recipe key
    return text if len(parsed) != 1 or isinstance(value, (datetime.date, datetime.time)) else value


def _locs(value: Any, at: Loc = ()) -> list[Loc]:
    """Every loc in a value: its tables, lists and plain values."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [loc for key, item in items for loc in [(*at, key), *_locs(item, (*at, key))]]
