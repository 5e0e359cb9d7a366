"""A folder that many want is made once, whole, also when its maker dies."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from launcher.work import once
from launcher.work.samples import Sample, SampleWriter, StoredSamples

pytestmark = pytest.mark.unit

ME = {"run": "mine", "attempt": 2}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "POLL_SECONDS", 0.01)


def write(folder: Path) -> None:
    (folder / "file").write_text("whole")


def nothing(whom: str) -> None:
    pass


def lock_of(folder: Path, **owner: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / f".{folder.name}.lock").write_text(json.dumps(owner))


def test_many_makers_make_it_once(tmp_path: Path) -> None:
    folder, made = tmp_path / "cache" / "key", []

    def make(part: Path) -> None:
        made.append(part)
        write(part)

    def want(number: int) -> None:
        once.make_once(folder, make, who={"run": f"run {number}"}, on_wait=nothing)

    threads = [threading.Thread(target=want, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert [path.name for path in folder.parent.iterdir()] == ["key"], "neither locks nor parts are left"


def test_what_is_made_between_two_looks_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, take = tmp_path / "key", once._created

    def late(lock: Path, owner: dict[str, str]) -> bool:
        folder.mkdir()
        return take(lock, owner)

    monkeypatch.setattr(once, "_created", late)
    once.make_once(folder, lambda part: pytest.fail("it is there"), who=ME, on_wait=nothing)
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_what_fails_leaves_nothing_and_the_next_one_makes_it(tmp_path: Path) -> None:
    folder = tmp_path / "key"

    def fail(part: Path) -> None:
        write(part)
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        once.make_once(folder, fail, who=ME, on_wait=nothing)
    assert list(tmp_path.iterdir()) == []
    once.make_once(folder, write, who=ME, on_wait=nothing)
    assert (folder / "file").read_text() == "whole"


def test_an_earlier_attempts_lock_is_ours(tmp_path: Path) -> None:
    folder = tmp_path / "key"
    lock_of(folder, run="mine", host="dead-node", part=".key.dead-1.part")
    (tmp_path / ".key.dead-1.part").mkdir()
    once.make_once(folder, write, who=ME, on_wait=lambda whom: pytest.fail("nobody to wait for"))
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_another_runs_maker_is_waited_for_until_it_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "key"
    lock_of(folder, run="other", host="n1", part=".key.n1-1.part")
    monkeypatch.setattr(once, "STALE_SECONDS", 0.3)
    waited: list[str] = []
    part = tmp_path / ".key.n1-1.part"
    part.mkdir()

    def grow(whom: str) -> None:
        waited.append(whom)
        if len(waited) < 60:  # 0.6 s and more of life
            (part / "tokens").write_text("x" * len(waited))

    once.make_once(folder, write, who=ME, on_wait=grow)
    assert waited[0] == "run other on n1"
    assert len(waited) >= 60
    assert (folder / "file").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_a_maker_taken_for_dead_spoils_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "key"

    def slow(part: Path) -> None:
        write(part)
        lock_of(folder, run="other", host="n1", part=".key.n1-1.part")

    once.make_once(folder, slow, who=ME, on_wait=nothing)
    assert (folder / "file").read_text() == "whole"
    assert (tmp_path / ".key.lock").exists(), "the other one's lock is the other one's"


def test_those_who_wait_name_who_is_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "LATE_SECONDS", 0.1)
    folder = tmp_path / "key"
    lock_of(folder, run="other", host="n1", part=".key.n1-1.part")
    with pytest.raises(TimeoutError, match="run other on n1 has written nothing"):
        once.wait_made(folder, on_wait=nothing)
    folder.mkdir()
    once.wait_made(folder, on_wait=nothing)


def test_samples_come_back_from_their_files(tmp_path: Path) -> None:
    samples = [
        Sample("a", [1, 2**31 - 1, 3], [False, True, True]),
        Sample("bü#1", [7, 8], [True, True]),
    ]
    writer = SampleWriter(tmp_path)
    for sample in samples:
        writer.add(sample)
    writer.close()
    found = StoredSamples(tmp_path)
    assert [(one.id, one.tokens, one.trained, one.length) for one in found] == [
        (one.id, one.tokens, one.trained, one.length) for one in samples
    ]
    assert list(found.lengths()) == [2, 1]
    assert [one.id for one in found[1:]] == ["bü#1"]


def test_no_samples_are_an_empty_folder(tmp_path: Path) -> None:
    SampleWriter(tmp_path).close()
    assert (len(StoredSamples(tmp_path)), list(StoredSamples(tmp_path).lengths())) == (0, [])
