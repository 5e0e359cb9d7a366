"""Batch scripts: the #SBATCH lines, read as sbatch reads them (sbatch(1), proc_args.c), into what a job asks for."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from launcher.errors import Fault, InputError
from launcher.units import parse_mib

SIGNAL_SECONDS = 60  # sbatch's default distance of --signal to the limit
MAX_ARRAY = 10_000  # tasks
DEPENDENCIES = ("afterok", "afterany", "afternotok", "aftercorr")


@dataclass(frozen=True)
class Request:
    """What a job asks for. Memory and GPUs are per node; `memory_mib` 0 is all of the node's."""

    name: str = ""
    comment: str = ""
    output: str = ""
    error: str = ""
    append: bool = False
    directory: str = ""
    nodes: int = 0
    tasks: int = 0
    tasks_per_node: int = 0
    cpus_per_task: int = 1
    memory_mib: int | None = None
    gpus_per_node: int = 0
    gpus: int = 0
    exclusive: bool = False
    time_limit_seconds: int | None = None
    signal: int = 0
    signal_seconds: int = SIGNAL_SECONDS
    signal_batch: bool = False
    requeue: bool = True
    kill_on_invalid_dep: bool = False
    array: str = ""
    dependencies: tuple[tuple[str, str], ...] = ()

    @property
    def cpus_per_node(self) -> int:
        return self.tasks_per_node * self.cpus_per_task


_SHORT = {
    "-A": "account",
    "-C": "constraint",
    "-D": "chdir",
    "-G": "gpus",
    "-J": "job-name",
    "-N": "nodes",
    "-a": "array",
    "-c": "cpus-per-task",
    "-d": "dependency",
    "-e": "error",
    "-n": "ntasks",
    "-o": "output",
    "-p": "partition",
    "-q": "qos",
    "-t": "time",
}
_FLAGS = {"requeue", "no-requeue", "exclusive", "overcommit", "oversubscribe", "contiguous", "parsable", "quiet"}
# what has no meaning on one computer and changes no result
_HARMLESS = {
    *("account", "constraint", "contiguous", "cpu-bind", "distribution", "exclude", "extra-node-info", "gpu-bind"),
    *("gres-flags", "hint", "licenses", "mail-type", "mail-user", "mem-bind", "network", "nice", "no-kill", "nodelist"),
    *("overcommit", "oversubscribe", "parsable", "partition", "prefer", "priority", "profile", "qos", "quiet"),
    *("reservation", "sockets-per-node", "switches", "threads-per-core", "tmp", "wckey", "container-image"),
}


def parse_script(text: str, *, where: str) -> Request:
    """The #SBATCH lines of a script. Raises InputError with all faults; `where` names the script in them."""
    if not text.startswith("#!"):
        message = "does not look like a batch script"
        raise InputError([Fault(where, message, "its first line must be #! and the path of an interpreter")])
    if "\r\n" in text:
        raise InputError([Fault(where, "has DOS line breaks", "convert it, for instance with dos2unix")])
    request, faults = Request(), []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("#SBATCH"):
            try:
                for name, value in _options(split(line.removeprefix("#SBATCH"))):
                    request = replace(request, **_fields(name, value))
            except ValueError as error:
                faults.append(Fault(f"{where}:{number}", str(error)))
        elif line.strip() and not line.startswith("#"):
            break  # sbatch reads up to the first command
    if faults:
        raise InputError(faults)
    return _with_defaults(request, where)


def comment_of(text: str) -> str:
    """The --comment of a script, "" without one, whatever else it asks for: other options are not looked at."""
    for line in text.split("\n"):
        if line.startswith("#SBATCH"):
            for word in split(line.removeprefix("#SBATCH")):
                if word.startswith("--comment="):
                    return word.removeprefix("--comment=")
    return ""


def split(line: str) -> list[str]:
    """The words of an #SBATCH line. Unlike in a shell, a backslash escapes in single quotes too but never a space, and
    an unquoted # starts a comment anywhere (seen with sbatch 22.05). Raises ValueError for an open quote."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    escaped = False
    for letter in line:
        if letter.isspace() and not quote:  # also after a backslash
            if word is not None:
                words.append(word)
            word, escaped = None, False
        elif escaped:
            word, escaped = (word or "") + letter, False
        elif letter == "\\":
            escaped = True
        elif quote:
            if letter == quote:
                quote = ""
            else:
                word = (word or "") + letter
        elif letter in "'\"":
            quote, word = letter, word or ""
        elif letter == "#":
            break
        else:
            word = (word or "") + letter
    if quote:
        raise ValueError(f"unmatched {quote} in {line.strip()!r}")
    return words if word is None else [*words, word]


def _options(words: list[str]) -> Iterator[tuple[str, str | None]]:
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        value: str | None
        if word.startswith("--"):
            name, equals, text = word[2:].partition("=")
            value = text if equals else None
        elif word[:2] in _SHORT:
            name, value = _SHORT[word[:2]], word[2:].removeprefix("=") or None
        else:
            raise ValueError(f"{word!r} is not an option of sbatch that the local scheduler knows")
        if value is None and name not in _FLAGS:
            if position == len(words):
                raise ValueError(f"option --{name} needs a value" if name in _KNOWN else _unknown(name))
            value = words[position]
            position += 1
        yield name, value


def _fields(name: str, value: str | None) -> dict[str, Any]:
    """The fields of Request that an option sets. Raises ValueError for an unknown option or a bad value."""
    if name in _VALUES:
        field, read = _VALUES[name]
        try:
            return {field: read(value or "")}
        except ValueError as error:
            raise ValueError(f"--{name}={value}: {error}") from None
    match name:
        case "requeue" | "no-requeue":
            return {"requeue": name == "requeue"}
        case "exclusive":
            return {"exclusive": True}
        case "signal":
            return _signal(value or "")
        case "gres":
            return _gres(value or "")
        case "export" if value not in ("ALL", "all"):
            raise ValueError(f"--export={value}: the local scheduler only has ALL")
    if name in _HARMLESS or name == "export":
        return {}
    raise ValueError(_unknown(name))


def _unknown(name: str) -> str:
    return f"option --{name} is not known to the local scheduler"


def _with_defaults(request: Request, where: str) -> Request:
    tasks_per_node = request.tasks_per_node
    nodes = request.nodes or (-(-request.tasks // tasks_per_node) if tasks_per_node and request.tasks else 1)
    tasks = request.tasks or nodes * (tasks_per_node or 1)
    per_node = tasks_per_node or -(-tasks // nodes)
    if tasks < nodes or tasks > nodes * per_node:
        message = f"{tasks} tasks do not fit {nodes} nodes with {per_node} tasks each"
        raise InputError([Fault(where, message, "set --nodes and --ntasks-per-node, leave --ntasks out")])
    gpus_per_node = request.gpus_per_node or -(-request.gpus // nodes)
    return replace(request, nodes=nodes, tasks=tasks, tasks_per_node=per_node, gpus_per_node=gpus_per_node)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise ValueError("not a whole number above zero")
    return int(text)


def _nodes(text: str) -> int:
    low, _, high = text.partition("-")
    if high and _count(high) < _count(low):
        raise ValueError("the largest number of nodes is below the smallest")
    return _count(low)


def _gpus(text: str) -> int:
    count = text.rpartition(":")[2]  # "a100:4"
    if not count.isdigit():
        raise ValueError("not a number of GPUs")
    return int(count)


def _gres(text: str) -> dict[str, Any]:
    kind, _, count = text.partition(":")
    if kind not in ("gpu", "none") or "," in text:
        raise ValueError(f"--gres={text}: the local scheduler only knows gpu")
    return {} if kind == "none" else {"gpus_per_node": _gpus(count or "1")}


def _memory(text: str) -> int:
    return 0 if text == "0" else parse_mib(text)


def _switch(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError("write yes or no")
    return text == "yes"


def _append(text: str) -> bool:
    if text not in ("append", "truncate"):
        raise ValueError("write append or truncate")
    return text == "append"


def parse_seconds(text: str) -> int | None:
    """sbatch's --time in seconds, None for no limit. Unlike Slurm's, limits keep their seconds."""
    if text.upper() in ("UNLIMITED", "INFINITE", "0"):
        return None
    match = re.fullmatch(r"(?:(\d+)-(\d+)(?::(\d+))?(?::(\d+))?)|(?:(\d+)(?::(\d+))?(?::(\d+))?)", text)
    if not match:
        raise ValueError('not a time; write minutes, or "days-hours:minutes:seconds"')
    days, hours, minutes, seconds, first, second, third = (
        None if part is None else int(part) for part in match.groups()
    )
    if first is None:
        total = (days or 0) * 86400 + (hours or 0) * 3600 + (minutes or 0) * 60 + (seconds or 0)
    elif third is None:  # "minutes" or "minutes:seconds"
        total = first * 60 + (second or 0)
    else:
        total = first * 3600 + (second or 0) * 60 + third
    return total or None


def _signal(text: str) -> dict[str, Any]:
    target, colon, rest = text.rpartition(":")
    name, at, seconds = rest.partition("@")
    if (colon and target not in ("B", "R", "BR", "RB")) or (at and not seconds.isdigit()):
        raise ValueError(f"--signal={text}: write [B:]SIGNAL[@SECONDS]")
    return {
        "signal": signal_number(name),
        "signal_seconds": int(seconds) if at else SIGNAL_SECONDS,
        "signal_batch": "B" in target,
    }


def signal_number(name: str) -> int:
    """The number of "USR2", "SIGUSR2" or "12". Raises ValueError."""
    try:
        return signal.Signals(int(name)) if name.isdigit() else signal.Signals["SIG" + name.upper().removeprefix("SIG")]
    except (KeyError, ValueError):
        raise ValueError(f"{name!r} is not a signal") from None


def parse_array(text: str) -> tuple[list[int], int]:
    """ "0-9:3,20%2" -> ([0, 3, 6, 9, 20], 2); a limit of 0 is none. Raises ValueError."""
    ranges, percent, limit = text.partition("%")
    tasks: set[int] = set()
    for part in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if not match or int(match[2] or match[1]) < int(match[1]) or match[3] == "0":
            raise ValueError(f"{text!r} is not an array; write 0-9 or 1,3,5 or 0-9%2")
        if int(match[2] or match[1]) - int(match[1]) > MAX_ARRAY:
            raise ValueError(f"an array has at most {MAX_ARRAY} tasks")
        tasks.update(range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1)))
    if len(tasks) > MAX_ARRAY:
        raise ValueError(f"an array has at most {MAX_ARRAY} tasks")
    return sorted(tasks), _count(limit) if percent else 0


def _array(text: str) -> str:
    parse_array(text)
    return text


def parse_dependencies(text: str) -> tuple[tuple[str, str], ...]:
    """ "afterok:1:2,afterany:3_4" -> (("afterok", "1"), ("afterok", "2"), ("afterany", "3_4")). Raises ValueError."""
    found = []
    for part in text.split(","):
        kind, *ids = part.split(":")
        if kind not in DEPENDENCIES or not ids or not all(re.fullmatch(r"\d+(_\d+)?", job_id) for job_id in ids):
            raise ValueError(f"{part!r} is not a dependency; the local scheduler has {', '.join(DEPENDENCIES)}")
        found += [(kind, job_id) for job_id in ids]
    return tuple(found)


_VALUES: dict[str, tuple[str, Any]] = {
    "job-name": ("name", str),
    "comment": ("comment", str),
    "output": ("output", str),
    "error": ("error", str),
    "open-mode": ("append", _append),
    "chdir": ("directory", str),
    "nodes": ("nodes", _nodes),
    "ntasks": ("tasks", _count),
    "ntasks-per-node": ("tasks_per_node", _count),
    "cpus-per-task": ("cpus_per_task", _count),
    "mem": ("memory_mib", _memory),
    "gpus-per-node": ("gpus_per_node", _gpus),
    "gpus": ("gpus", _gpus),
    "time": ("time_limit_seconds", parse_seconds),
    "kill-on-invalid-dep": ("kill_on_invalid_dep", _switch),
    "array": ("array", _array),
    "dependency": ("dependencies", parse_dependencies),
}
_KNOWN = {*_VALUES, *_HARMLESS, *_FLAGS, "signal", "gres", "export"}
