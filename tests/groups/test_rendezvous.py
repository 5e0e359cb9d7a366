from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from launcher.work.rendezvous import Expected, Rendezvous

pytestmark = pytest.mark.unit

EXPECTED = {"train": Expected(("node1", "node2")), "sample": Expected(("node3", "node4"))}


def rank(folder: Path, group: str, number: int, **changes: Any) -> Rendezvous:
    given = {"job_id": "7", "attempt": 2, "start": 1, "host": f"{group}-{number}", "interrupt": lambda: None}
    return Rendezvous(folder, group=group, rank=number, expected=EXPECTED, **{**given, **changes})


def test_who_has_announced_is_found(tmp_path: Path) -> None:
    told = [rank(tmp_path, "sample", number).announce("http", 8000 + number) for number in (0, 1)]
    found = rank(tmp_path, "train", 0).members("http", "sample", ranks=None, after=0, timeout_seconds=0)
    assert found == told
    assert [(member.host, member.port, member.rank) for member in found] == [
        ("sample-0", 8000, 0),
        ("sample-1", 8001, 1),
    ]
    assert found[0].token != found[1].token
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())
    assert found[0].token not in repr(found)


def test_who_is_late_is_named(tmp_path: Path) -> None:
    asks = rank(tmp_path / "not there yet", "train", 0)
    with pytest.raises(TimeoutError, match=r"waited 0 s for http of group sample, ranks 0 \(node3\), 1 \(node4\)"):
        asks.members("http", "sample", ranks=None, after=0, timeout_seconds=0)
    rank(tmp_path, "sample", 0).announce("http", 1)
    rank(tmp_path, "sample", 1).announce("torch", 1)  # another service
    with pytest.raises(TimeoutError, match=r"for http of group sample, rank 1 \(node4\)"):
        rank(tmp_path, "train", 0).members("http", "sample", ranks=None, after=0, timeout_seconds=0)
    assert rank(tmp_path, "train", 0).members("http", "sample", ranks=[0], after=0, timeout_seconds=0)


@pytest.mark.parametrize("changes", [{"job_id": "6"}, {"attempt": 1}])
def test_what_another_job_or_attempt_left_is_never_taken(tmp_path: Path, changes: dict[str, Any]) -> None:
    rank(tmp_path, "sample", 0, **changes).announce("http", 1)
    with pytest.raises(TimeoutError, match="rank 0"):
        rank(tmp_path, "train", 0).members("http", "sample", ranks=[0], after=0, timeout_seconds=0)


def test_a_file_that_lies_about_its_name_or_is_broken_is_never_taken(tmp_path: Path) -> None:
    rank(tmp_path, "train", 0).announce("http", 1)
    (tmp_path / "http.train.1.0.json").rename(tmp_path / "http.sample.1.0.json")
    (tmp_path / "http.sample.1.1.json").write_text("{")
    (tmp_path / "http.sample.2.1.json").write_text(json.dumps({"rank": 1}))
    with pytest.raises(TimeoutError, match="ranks 0"):
        rank(tmp_path, "train", 0).members("http", "sample", ranks=None, after=0, timeout_seconds=0)


def test_a_group_that_was_started_again_counts_whole(tmp_path: Path) -> None:
    for number in (0, 1):
        rank(tmp_path, "sample", number).announce("http", 1)
    rank(tmp_path, "sample", 1, start=2).announce("http", 2)
    asks = rank(tmp_path, "train", 0)
    with pytest.raises(TimeoutError, match=r"rank 0 \(node3\)"):
        asks.members("http", "sample", ranks=None, after=0, timeout_seconds=0)
    rank(tmp_path, "sample", 0, start=2).announce("http", 2)
    assert [m.start for m in asks.members("http", "sample", ranks=None, after=1, timeout_seconds=0)] == [2, 2]
    with pytest.raises(TimeoutError, match="ranks 0"):
        asks.members("http", "sample", ranks=None, after=2, timeout_seconds=0)


def test_a_world_is_that_of_the_own_start(tmp_path: Path) -> None:
    rank(tmp_path, "sample", 0).own_world("torch", timeout_seconds=0)
    with pytest.raises(TimeoutError, match=r"group sample, rank 0 \(node3\)"):
        rank(tmp_path, "sample", 1, start=2).own_world("torch", timeout_seconds=0)
    met = rank(tmp_path, "sample", 0, start=2).own_world("torch", timeout_seconds=0)
    assert rank(tmp_path, "sample", 1, start=2).own_world("torch", timeout_seconds=0) == met


def test_a_wait_ends_when_a_stop_is_asked_for(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        rank(tmp_path, "train", 0, interrupt=stop).members("http", "sample", ranks=None, after=0, timeout_seconds=600)
