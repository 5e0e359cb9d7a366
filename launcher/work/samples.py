"""Samples: what a model is trained on, token by token, in memory or in files that are read where they lie.

A folder of samples holds
    tokens.bin   32-bit words: the tokens of all samples; the highest bit marks those that are trained
    names.bin    the samples' ids, UTF-8
    index.bin    for each sample two 64-bit words: where its tokens and its id end
Words lie as the machine has them: little-endian wherever models are trained.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, overload

_TRAINED = 1 << 31


class SampleLike(Protocol):
    """Tokens of one sequence; `trained[i]` says whether predicting token i counts in the loss."""

    @property
    def id(self) -> str: ...
    @property
    def tokens(self) -> list[int]: ...
    @property
    def trained(self) -> list[bool]: ...
    @property
    def length(self) -> int:
        """Tokens that the model reads: all but the last, which is only predicted."""


@dataclass(frozen=True)
class Sample:
    """One sequence in memory."""

    id: str
    tokens: list[int]
    trained: list[bool]

    @property
    def length(self) -> int:
        return len(self.tokens) - 1


class SampleWriter:
    """Writes the files of a folder of samples, one sample after another."""

    def __init__(self, folder: Path) -> None:
        self._open = ExitStack()
        names = ("tokens.bin", "names.bin", "index.bin")
        self._tokens, self._names, self._index = (self._open.enter_context((folder / n).open("wb")) for n in names)
        self.count = self.tokens = self._name_bytes = 0

    def add(self, sample: Sample) -> None:
        marked = (
            token | _TRAINED if trained else token for token, trained in zip(sample.tokens, sample.trained, strict=True)
        )
        self._tokens.write(array("I", marked).tobytes())
        name = sample.id.encode()
        self._names.write(name)
        self.count += 1
        self.tokens += len(sample.tokens)
        self._name_bytes += len(name)
        self._index.write(array("Q", (self.tokens, self._name_bytes)).tobytes())

    def close(self) -> None:
        self._open.close()


class StoredSamples(Sequence["StoredSample"]):
    """The samples of a folder. Nothing is read before it is looked at; memory is the page cache's."""

    def __init__(self, folder: Path) -> None:
        self._tokens = _mapped(folder / "tokens.bin", "I")
        self._names = _mapped(folder / "names.bin", "B")
        self._index = _mapped(folder / "index.bin", "Q")

    def __len__(self) -> int:
        return len(self._index) // 2

    @overload
    def __getitem__(self, index: int) -> StoredSample: ...
    @overload
    def __getitem__(self, index: slice) -> list[StoredSample]: ...
    def __getitem__(self, index: int | slice) -> StoredSample | list[StoredSample]:
        if isinstance(index, slice):
            return [StoredSample(self, number) for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return StoredSample(self, index)

    def lengths(self) -> array[int]:
        """Every sample's length."""
        ends = self._index[::2]
        return array("I", (end - start - 1 for start, end in zip(_shifted(ends), ends, strict=False)))

    def words(self, index: int) -> list[int]:
        start, end = self._bounds(index, 0)
        return list(self._tokens[start:end])

    def name(self, index: int) -> str:
        start, end = self._bounds(index, 1)
        return bytes(self._names[start:end]).decode()

    def length(self, index: int) -> int:
        start, end = self._bounds(index, 0)
        return end - start - 1

    def _bounds(self, index: int, column: int) -> tuple[int, int]:
        at = 2 * index + column
        return int(self._index[at - 2]) if index else 0, int(self._index[at])


class StoredSample:
    """One sample of a folder; its tokens are read when they are asked for."""

    __slots__ = ("_index", "_store")

    def __init__(self, store: StoredSamples, index: int) -> None:
        self._store, self._index = store, index

    @property
    def id(self) -> str:
        return self._store.name(self._index)

    @property
    def length(self) -> int:
        return self._store.length(self._index)

    @property
    def tokens(self) -> list[int]:
        return [word & (_TRAINED - 1) for word in self._store.words(self._index)]

    @property
    def trained(self) -> list[bool]:
        return [word >= _TRAINED for word in self._store.words(self._index)]


def _shifted(ends: memoryview[int]) -> Iterator[int]:
    yield 0
    yield from ends


def _mapped(path: Path, kind: Literal["B", "I", "Q"]) -> memoryview[int]:
    """A file as a row of numbers."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return memoryview(array(kind))
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast(kind)
