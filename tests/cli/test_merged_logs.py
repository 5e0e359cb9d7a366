"""Logs of all ranks merged: whole lines, later attempts, groups, several stages."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from launcher.record import write_text
from launcher.rundir import RunDir
from launcher.view.merged import Merged

pytestmark = pytest.mark.unit


def append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


class Reader:
    """What `logs --follow` prints, look by look."""

    def __init__(self, files: RunDir, since: dict[str, int], *, named: bool = False) -> None:
        self.logs = Merged(files, since, named=named)
        self.told: list[str] = []

    def look(self, *, last: bool = False) -> list[str]:
        out = io.BytesIO()
        self.logs.copy(out, self.told.append, last=last)
        return out.getvalue().decode().splitlines()


def test_ranks_are_named_and_lines_stay_whole(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    for rank in (0, 3, 10):
        append(files.rank_log("train", 1, rank), f"hello from {rank}\nhal")
    reader = Reader(files, {"train": 1})
    assert reader.look() == ["rank 0 | hello from 0", "rank 3 | hello from 3", "rank 10 | hello from 10"]
    assert reader.look() == []
    append(files.rank_log("train", 1, 3), "f a line\n")
    assert reader.look() == ["rank 3 | half a line"]
    assert reader.look(last=True) == ["rank 0 | hal", "rank 10 | hal"]
    assert reader.told == [f"==> train, attempt 1: {files.attempt('train', 1)}"]


def test_later_attempts_and_the_job_script(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    append(files.batch_log("train"), "of long ago\n")
    append(files.rank_log("train", 1, 0), "of long ago\n")
    append(files.rank_log("train", 2, 0), "second\n")
    reader = Reader(files, {"train": 2})
    assert reader.look() == ["rank 0 | second"]
    append(files.batch_log("train"), "asking for another\n")
    append(files.rank_log("train", 2, 0), "its end\n")
    append(files.rank_log("train", 3, 0), "short\n")  # came and went between two looks
    append(files.rank_log("train", 4, 0), "fourth\n")
    assert reader.look() == ["job | asking for another", "rank 0 | its end", "rank 0 | short", "rank 0 | fourth"]
    assert len(reader.told) == 3


def test_groups_and_stages_are_named(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    write_text(files.rank_log("train", 1, 0, "sample"), "a\n")
    write_text(files.rank_log("train", 1, 1, "train"), "b\n")
    reader = Reader(files, {"train": 1, "export": 1}, named=True)
    assert reader.look() == ["train sample 0 | a", "train train 1 | b"]
    write_text(files.rank_log("export", 1, 0), "c\n")
    assert reader.look() == ["export rank 0 | c"]


def test_a_log_that_was_cut_is_read_again(tmp_path: Path) -> None:
    files = RunDir(tmp_path)
    write_text(files.rank_log("train", 1, 0), "a long line\n")
    reader = Reader(files, {"train": 1})
    reader.look()
    files.rank_log("train", 1, 0).write_text("short\n")
    assert reader.look() == ["rank 0 | short"]
