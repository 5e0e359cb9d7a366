"""A check of training and evaluation files that names every bad line and sums up what they hold."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.datafiles import BadFile, BadRow, file_fault, records
from launcher.errors import Fault
from launcher.lengths import LengthCount, Lengths
from launcher.rows import Row, Shape

MOST_FAULTS = 20
MOST_ALIKE = 3  # faults with the same reason; a file with the wrong columns is one mistake, not one a row


@dataclass(frozen=True)
class DataReport:
    """What a check of data files found."""

    rows: int  # usable ones
    bad_rows: int
    format: str  # messages, prompt_completion, text, preference or kto; "" where no row could be read
    faults: tuple[Fault, ...]  # at most MOST_FAULTS, MOST_ALIKE of a reason, in the order of the files
    duplicates: int  # rows equal to an earlier one
    sha256: str  # of the files' contents in their order; names do not matter
    characters: Lengths
    tokens: Lengths | None  # where a tokenizer was given; without the chat template's own tokens
    longer_than_limit: int | None  # rows with more tokens than the limit, where both were given


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
    shape = Shape(format, columns)
    faults: list[Fault] = []
    alike: Counter[str] = Counter()
    bad_rows = too_long = 0
    seen = array("Q")
    characters, tokens = LengthCount(), LengthCount()
    whole = hashlib.sha256()
    for path in map(Path, paths):
        before = len(seen) + bad_rows
        try:
            whole.update(_sha256(path))
            for item in records(path):
                try:
                    row = shape.row(item.record)
                except BadRow as bad:
                    bad_rows += 1
                    alike[str(bad)] += 1
                    if len(faults) < MOST_FAULTS and alike[str(bad)] <= MOST_ALIKE:
                        faults.append(Fault(item.where, str(bad)))
                    continue
                text = row_text(row)
                seen.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
                longest = longest_sequence(row)
                characters.add(len(longest))
                if count_tokens is not None:
                    count = count_tokens(longest)
                    tokens.add(count)
                    too_long += limit_tokens is not None and count > limit_tokens
            if len(seen) + bad_rows == before:
                raise BadFile("holds no rows")
        except BadFile as bad:
            faults.append(file_fault(path, bad))
        except OSError as error:
            faults.append(Fault(str(path), f"cannot be read: {error.strerror or error}"))
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
    """All text of a row, its parts on lines of their own: what duplicates are found by."""
    return "\n".join(_turns_text(part) if isinstance(part, list) else str(part) for part in row.values())


def longest_sequence(row: Row) -> str:
    """The longest text that a model is shown of a row at once: of two answers the longer one with the prompt."""
    if "rejected" in row:
        return f"{_turns_text(row['prompt'])}\n{max(row['chosen'], row['rejected'], key=len)}"
    if "label" in row:
        return f"{_turns_text(row['prompt'])}\n{row['completion']}"
    return row_text(row)


def _turns_text(turns: Sequence[Mapping[str, Any]]) -> str:
    """Messages with their calls of tools; descriptions of tools, which have no role, as JSON."""
    return "\n".join(
        f"{turn['role']}\n{turn['content']}{_json(turn['tool_calls']) if 'tool_calls' in turn else ''}"
        if "role" in turn
        else _json(turn)
        for turn in turns
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def hash_parameters(parameters: Mapping[str, Any]) -> str:
    """SHA-256 of a generator's parameters (JSON values); the order of keys does not matter."""
    return hashlib.sha256(json.dumps(parameters, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.digest()


def _repeated(hashes: array[int]) -> int:
    """How many values equal an earlier one."""
    ordered = sorted(hashes)
    return sum(one == other for one, other in itertools.pairwise(ordered))
