"""Data files: every accepted shape, every bad line named, streams of any length."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from launcher.dataset import MOST_FAULTS, check_files, hash_parameters, row_text
from launcher.errors import InputError, UserError
from launcher.rows import read_rows

pytestmark = pytest.mark.unit

CHAT = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
PAIR = {"prompt": "1+1?", "completion": "2"}
TEXT = {"text": "A long text."}


def jsonl(folder: Path, *rows: object, name: str = "d.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"".join(r + b"\n" if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


@pytest.mark.parametrize(
    ("record", "row"),
    [
        (CHAT, CHAT),
        (PAIR, PAIR),
        (TEXT, TEXT),
        ({**CHAT, "id": 7, "text": "ignored"}, CHAT),
        ({"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]}, CHAT),
        ({"question": "1+1?", "answer": "2"}, PAIR),
        ({"instruction": "1+1?", "input": "", "output": "2"}, PAIR),
        ({"instruction": "Add.", "input": "1+1", "output": "2"}, {"prompt": "Add.\n\n1+1", "completion": "2"}),
        ({"content": "A long text.", "url": "x"}, TEXT),
        (
            {"messages": [{"role": "developer", "content": "s"}, *CHAT["messages"]]},
            {"messages": [{"role": "system", "content": "s"}, *CHAT["messages"]]},
        ),
    ],
)
def test_shapes(tmp_path: Path, record: dict[str, Any], row: dict[str, Any]) -> None:
    assert list(read_rows([jsonl(tmp_path, record)])) == [row]


def test_columns_and_formats(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"q": "1+1?", "a": "2", "text": "A long text."})
    columns = {"messages": None, "prompt": "q", "completion": "a", "text": None}
    assert list(read_rows([path], "auto", columns)) == [PAIR]
    assert list(read_rows([path], "prompt_completion", columns)) == [PAIR]
    assert list(read_rows([path], "text")) == [TEXT]
    assert list(read_rows([str(path)])) == [TEXT]
    with pytest.raises(InputError, match="has no columns for messages; it has 'q', 'a', 'text'"):
        list(read_rows([path], "messages"))
    with pytest.raises(ValueError, match="is not one of"):
        list(read_rows([path], "chat"))


def test_all_kinds_of_files_hold_the_same_rows(tmp_path: Path) -> None:
    rows = [{"prompt": f'{n}, "quoted"\nand größe 模型 \U0001f600', "completion": str(n)} for n in range(1, 5)]
    files = [jsonl(tmp_path, *rows)]
    files.append(tmp_path / "d.json")
    files[-1].write_text("\ufeff" + json.dumps(rows, indent=2, ensure_ascii=False), encoding="utf-8")
    files.append(tmp_path / "lines.json")
    files[-1].write_text("\n".join(json.dumps(row) for row in rows))
    files.append(tmp_path / "d.csv")
    with files[-1].open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    for path in files:
        assert list(read_rows([path])) == rows, path
        report = check_files([path])
        assert (report.rows, report.bad_rows, report.faults, report.format) == (4, 0, (), "prompt_completion")
    assert check_files(files).rows == 16
    assert check_files(files).duplicates == 12


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "d.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([CHAT, CHAT, {"messages": None}]), path)
    report = check_files([path])
    assert (report.rows, report.bad_rows, report.format) == (2, 1, "messages")
    assert report.faults[0].where == f"{path}:3"
    path.write_bytes(b"no parquet at all")
    assert "is not Parquet" in check_files([path]).faults[0].message


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match="need pyarrow") as caught:
        check_files([path])
    assert caught.value.exit_code == 2
    assert "swiftlaunch[data]" in caught.value.hint


BAD = [
    (b"{", "is not JSON: Expecting property name"),
    (b'{"prompt": "a", "completion": "b"', "is not JSON: Expecting ',' delimiter"),
    (b"[1, 2]", "is a list, not an object"),
    (b"null", "is null, not an object"),
    (b'"text"', "is a text, not an object"),
    (b'{"prompt": "gr\xf6\xdfe", "completion": "b"}', "is not UTF-8: byte 0xf6 at column 15"),
    (b'{"prompt": 5, "completion": "b"}', "prompt is a number, not a text"),
    (b'{"prompt": "a", "completion": null}', "completion is null, not a text"),
    (b'{"prompt": "a", "completion": ["b"]}', "completion is a list, not a text"),
    (b'{"prompt": "  ", "completion": "b"}', "prompt is empty"),
    (b'{"prompt": "a", "completion": ""}', "completion is empty"),
    (b'{"prompt": "a"}', "has no column 'completion' for the completion; it has 'prompt'"),
    (b"{}", "it has none"),
    (b'{"prompt": "\\ud83d", "completion": "b"}', "half of a surrogate pair"),
    (b'{"prompt": ' + b"[" * 100_000 + b"}", "is not JSON"),
    (b'{"prompt": "a", "completion": ' + b"9" * 5000 + b"}", "is not JSON that can be read"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=[message for _, message in BAD])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = jsonl(tmp_path, PAIR, b"", line, PAIR)
    report = check_files([path])
    assert (report.rows, report.bad_rows, report.duplicates) == (2, 1, 1)
    assert len(report.faults) == 1
    assert report.faults[0].where == f"{path}:3"
    assert message in report.faults[0].message
    rows = read_rows([path])
    assert next(rows) == PAIR
    with pytest.raises(InputError) as caught:
        next(rows)
    assert caught.value.faults == report.faults


BAD_CHATS = [
    ([], "messages is empty"),
    ("hello", "messages is a text, not a list"),
    (["hello"], "message 1 is a text, not an object"),
    ([{"content": "x"}], "message 1 has the role None"),
    ([{"role": "boss", "content": "x"}], "message 1 has the role 'boss'"),
    ([{"role": "user"}], "message 1 has no content"),
    ([{"role": "user", "content": "x"}], "ends with the user's message"),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}], "content of message 2 is empty"),
    ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "content of message 1 is a list, not a text"),
    ([{"from": "robot", "value": "x"}], "message 1 has the role 'robot'"),
]


@pytest.mark.parametrize(("messages", "reason"), BAD_CHATS, ids=[reason for _, reason in BAD_CHATS])
def test_bad_messages(tmp_path: Path, messages: object, reason: str) -> None:
    report = check_files([jsonl(tmp_path, CHAT, {"messages": messages})])
    assert (report.rows, report.bad_rows) == (1, 1)
    assert reason in report.faults[0].message


def test_faults_are_cut_at_twenty_but_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b", **{f"x{n}": n for n in range(3)}} for _ in range(2)]
    report = check_files([jsonl(tmp_path, *rows, *({"prompt": f"a{n}"} | {f"k{n}": 1} for n in range(1000)))])
    assert len(report.faults) == MOST_FAULTS == 20
    assert report.bad_rows == 1000


def test_the_same_fault_is_listed_three_times(tmp_path: Path) -> None:
    path = jsonl(tmp_path, PAIR, *[{"prompt": 5, "completion": ""}] * 10, {"prompt": "", "completion": "x"})
    report = check_files([path])
    assert report.bad_rows == 11
    assert [(fault.where, fault.message, fault.hint) for fault in report.faults] == [
        (f"{path}:2", "prompt is a number, not a text", ""),
        (f"{path}:3", "prompt is a number, not a text", ""),
        (f"{path}:4", "prompt is a number, not a text", "7 more rows like this"),
        (f"{path}:12", "prompt is empty", ""),
    ]


BAD_FILES = [
    ("d.jsonl", b"", "holds no rows", 0),
    ("d.jsonl", b"\n\n", "holds no rows", 0),
    ("d.json", b"[]", "holds no rows", 0),
    ("d.json", b"", "is not a list of objects", 1),
    ("d.json", b"\n5", "is not a list of objects", 2),
    ("d.json", b'[{"text": "a"},\n 7]', "is not a list of objects", 2),
    ("d.json", b'[{"text": "a"}\n{"text": "b"}]', "',' or ']' is missing", 2),
    ("d.json", b'[{"text": "a"},\n{"text": "b" "c"}]', "is not JSON: Expecting ',' delimiter", 2),
    ("d.json", b'[{"text": "a"},\n{"text": "b\n"}]', "is not JSON: Invalid control character", 2),
    ("d.json", b'[{"text": "a"},\n{"text": "b', "is not JSON: Unterminated string", 2),
    ("d.json", b'[{"text": "a"}', "',' or ']' is missing", 1),
    ("d.json", b'[{"text": "a"},', "it ends within the list", 1),
    ("d.json", b'[{"text": "a"}] x', "there is more after the list", 1),
    ("d.json", b'[{"text": "\xff"}]', "is not UTF-8: byte 0xff", 1),
    ("d.csv", b"text\n", "holds no rows", 0),
    ("d.csv", b"text,text\na,b\n", "names a column twice", 1),
    ("d.csv", b'text\n"a\nb', "is not CSV", 2),
    ("d.csv", b"text\na\n\xff\n", "is not UTF-8: byte 0xff", 3),
    ("d.csv", b"text,n\na,1\nb\n", "has 1 cells, the header has 2", 3),
    ("d.csv", b'text,n\n"a\nb",1\n,2\n', "text is empty", 4),
    ("d.txt", b"text", "is none of .jsonl, .json, .csv, .parquet", 0),
]


@pytest.mark.parametrize(("name", "content", "message", "line"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str, line: int) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    good = jsonl(tmp_path, TEXT, name="good.jsonl")
    report = check_files([path, good])
    assert len(report.faults) == 1, report.faults
    assert report.faults[0].where == (f"{path}:{line}" if line else str(path))
    assert message in report.faults[0].message
    assert report.format == "text"


def test_missing_files(tmp_path: Path) -> None:
    report = check_files([tmp_path / "no.jsonl", tmp_path / "no.json"])
    assert [fault.message for fault in report.faults] == ["cannot be read: No such file or directory"] * 2
    (tmp_path / "folder.jsonl").mkdir()
    assert "Is a directory" in check_files([tmp_path / "folder.jsonl"]).faults[0].message
    with pytest.raises(FileNotFoundError):  # a job's worker decides by the class of an OSError whether to try again
        list(read_rows([tmp_path / "no.jsonl"]))


def test_lengths_and_tokens(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"text": "x" * length} for length in (1, 2, 3, 16, 17, 33)))
    report = check_files([path], count_tokens=lambda text: len(text) // 2, limit_tokens=8)
    assert (report.characters.smallest, report.characters.largest, report.characters.total) == (1, 33, 72)
    assert report.characters.buckets == ((1, 1), (2, 1), (4, 1), (16, 1), (32, 1), (64, 1))
    assert report.tokens is not None
    assert report.tokens.total == 34
    assert report.longer_than_limit == 1
    plain = check_files([path])
    assert (plain.tokens, plain.longer_than_limit) == (None, None)


def test_the_hash_is_of_contents_in_order(tmp_path: Path) -> None:
    one, two = jsonl(tmp_path, TEXT), jsonl(tmp_path, {"text": "other"}, name="e.jsonl")
    copy = jsonl(tmp_path, TEXT, name="copy.jsonl")
    assert check_files([one, two]).sha256 == check_files([copy, two]).sha256
    assert check_files([one, two]).sha256 != check_files([two, one]).sha256
    joined = jsonl(tmp_path, TEXT, {"text": "other"}, name="joined.jsonl")
    assert check_files([one, two]).sha256 != check_files([joined]).sha256


def test_hash_of_parameters() -> None:
    assert hash_parameters({"a": 1, "b": {"c": [1, 2]}}) == hash_parameters({"b": {"c": [1, 2]}, "a": 1})
    assert hash_parameters({"a": 1}) != hash_parameters({"a": "1"})
    assert len(hash_parameters({})) == 64


def test_an_object_larger_than_the_window_and_a_mistake_in_a_large_file(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    rows = [{"text": "x" * 3_000_000}, *({"text": f"{n} " + "y" * 1000} for n in range(3000))]
    path.write_text(json.dumps(rows))
    assert check_files([path]).rows == 3001
    path.write_text(json.dumps(rows[1:]).replace('"1500 ', "1500 "))
    tracemalloc.start()
    report = check_files([path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.rows == 1500
    assert "is not JSON" in report.faults[0].message
    assert peak < 6 << 20  # bytes; the file has 3 MB, a window 1 MB of text and its copy


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text": "row {number} {"z" * 200}"}}\n' for number in range(40_000))
    tracemalloc.start()
    assert sum(1 for _ in read_rows([path])) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 8_000_000
    assert peak < 1_000_000


_text = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: bool(text.strip()))


@given(st.lists(st.tuples(_text, _text), min_size=1, max_size=5))
def test_rows_survive_every_file_format(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    files = [jsonl(folder, *rows), folder / "d.json"]
    files[1].write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8", newline="")
    for path in files:
        assert list(read_rows([path])) == rows
    assert check_files(files).duplicates >= len(rows)
    assert all(row_text(row).startswith(row["prompt"]) for row in rows)


@given(st.binary(max_size=200), st.sampled_from([".jsonl", ".json", ".csv"]))
def test_any_bytes_give_a_report(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = tmp_path_factory.mktemp("bytes") / f"d{suffix}"
    path.write_bytes(content)
    report = check_files([path])
    assert report.rows or report.faults


def test_only_the_standard_library_is_needed() -> None:
    """The job's environments import this module without swiftlaunch's own dependencies."""
    code = "import launcher.rows"
    subprocess.run([sys.executable, "-S", "-c", code], check=True, env={"PYTHONPATH": str(Path(__file__).parents[2])})
