"""Node names and Slurm's short form of them: "local[1-3,7]"."""

from __future__ import annotations

import re


def node_name(index: int) -> str:
    """The name of the local scheduler's node with this index, which counts from 0."""
    return f"local{index + 1}"


def compress(names: list[str]) -> str:
    """["local1", "local2", "local4"] -> "local[1-2,4]"; names of other forms are only joined."""
    if len(names) < 2:
        return "".join(names)
    matches = [re.fullmatch(r"(.*?)(0|[1-9]\d*)", name) for name in names]
    prefixes = {match[1] for match in matches if match}
    if None in matches or len(prefixes) != 1:
        return ",".join(names)
    ranges: list[list[int]] = []
    for number in sorted(int(match[2]) for match in matches if match):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    inner = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
    return f"{prefixes.pop()}[{inner}]"


def expand(text: str) -> list[str]:
    """ "a[01-03,7]b,c" -> ["a01b", "a02b", "a03b", "a7b", "c"]. Raises ValueError for a broken list."""
    names: list[str] = []
    for word in _words(text):
        head, bracket, rest = word.partition("[")
        if not bracket:
            names.append(word)
            continue
        inner, closing, tail = rest.partition("]")
        if not closing:
            raise ValueError(f"{text!r} lacks a closing bracket")
        for part in inner.split(","):
            low, dash, high = part.partition("-")
            if not low.isdigit() or (dash and not high.isdigit()):
                raise ValueError(f"{part!r} in {text!r} is not a number or a range")
            for number in range(int(low), int(high if dash else low) + 1):
                names += [f"{head}{number:0{len(low)}d}{ending}" for ending in (expand(tail) if tail else [""])]
    return names


def _words(text: str) -> list[str]:
    return [word for word in re.findall(r"(?:[^,\[\]]|\[[^\]]*\]?)+", text) if word]
