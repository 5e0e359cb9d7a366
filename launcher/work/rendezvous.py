"""Where the ranks of one attempt can be reached: each writes a file in the run directory, the others read it.

A rank announces a service (its torch store, its sampler's port) by renaming a JSON file, mode 0600, into the attempt's
folder. What a file says of itself counts, not its name alone: announcements of another job, attempt, group or start
are never taken. Every wait has a deadline and names who is late. On NFS a name may be looked up in vain for a while
after it was made; the folder is therefore listed anew, which asks the server, before a file is opened.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.record import write_text

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Member:
    """One rank's announcement. `start` counts how often its group was started in this attempt, from 1.

    Who connects proves with `token` that it belongs to this attempt; it must appear in no log and no command line.
    """

    service: str
    job_id: str
    attempt: int
    group: str
    start: int
    rank: int
    host: str
    port: int
    token: str
    pid: int
    time: float  # Unix seconds

    def __repr__(self) -> str:
        """Without the token: this is what logs and tracebacks show."""
        return f"Member({self.service} {self.group} rank {self.rank} start {self.start} at {self.host}:{self.port})"


@dataclass(frozen=True)
class Expected:
    """A group as the plan has it: the node of each rank, "" where it is not known."""

    nodes: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return len(self.nodes)


class Rendezvous:
    """One rank's view of the meeting place of its attempt. `expected` has an entry for every group."""

    def __init__(
        self,
        folder: Path,
        *,
        job_id: str,
        attempt: int,
        group: str,
        start: int,
        rank: int,
        host: str,
        expected: Mapping[str, Expected],
        interrupt: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._job_id = job_id
        self._attempt = attempt
        self._group = group
        self._start = start
        self._rank = rank
        self._host = host
        self._expected = expected
        self._interrupt = interrupt  # called while waiting; raises where a stop was asked for

    def announce(self, service: str, port: int) -> Member:
        """Tell the other ranks where this one listens; do it after listening has begun."""
        member = Member(
            service=service,
            job_id=self._job_id,
            attempt=self._attempt,
            group=self._group,
            start=self._start,
            rank=self._rank,
            host=self._host,
            port=port,
            token=secrets.token_hex(16),
            pid=os.getpid(),
            time=time.time(),
        )
        path = self._folder / _file_name(service, self._group, self._start, self._rank)
        write_text(path, json.dumps(asdict(member), indent=2) + "\n", mode=0o600)
        return member

    def own_world(self, service: str, *, timeout_seconds: float) -> tuple[str, int]:
        """Host and port where the ranks of this group meet; rank 0 chooses a free port."""
        if self._rank == 0:
            member = self.announce(service, free_port())
        else:
            ranks = [0]
            member = self._wait(service, self._group, ranks, timeout_seconds, lambda start: start == self._start)[0]
        return member.host, member.port

    def members(
        self, service: str, group: str, *, ranks: Sequence[int] | None, after: int, timeout_seconds: float
    ) -> list[Member]:
        """The announcements of these ranks of a group (None: all), of its newest start, which is later than `after`.

        Raises KeyError for a group that the stage does not have, TimeoutError that names the ranks that are late.
        """
        wanted = list(range(self._expected[group].world_size)) if ranks is None else list(ranks)
        return self._wait(service, group, wanted, timeout_seconds, lambda start: start > after)

    def _wait(
        self, service: str, group: str, ranks: Sequence[int], timeout_seconds: float, wanted: Callable[[int], bool]
    ) -> list[Member]:
        deadline = time.monotonic() + timeout_seconds
        while True:
            found = self._announced(service, group)
            newest = max((start for start, _ in found if wanted(start)), default=0)
            late = [rank for rank in ranks if (newest, rank) not in found]
            if not late:
                return [found[newest, rank] for rank in ranks]
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {timeout_seconds:.0f} s for {service} of {self._names(group, late)}")
            self._interrupt()
            time.sleep(POLL_SECONDS)

    def _announced(self, service: str, group: str) -> dict[tuple[int, int], Member]:
        """What a group has announced in this attempt, by start and rank."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return {}
        found = {}
        for name in names:
            if not name.startswith(f"{service}.{group}.") or not name.endswith(".json"):
                continue
            try:
                member = Member(**json.loads((self._folder / name).read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue  # replaced while we read, or not one of ours
            told = (member.service, member.job_id, member.attempt, member.group)
            if told == (service, self._job_id, self._attempt, group):
                found[member.start, member.rank] = member
        return found

    def _names(self, group: str, ranks: Sequence[int]) -> str:
        nodes = self._expected[group].nodes
        who = ", ".join(f"{rank} ({nodes[rank]})" if nodes[rank] else str(rank) for rank in ranks)
        word = "ranks" if len(ranks) > 1 else "rank"
        return f"group {group}, {word} {who}" if group else f"{word} {who}"


def free_port() -> int:
    """A port that nobody listens on now; better listen on port 0 where the program can tell which one it got."""
    with closing(socket.socket()) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _file_name(service: str, group: str, start: int, rank: int) -> str:
    return f"{service}.{group}.{start}.{rank}.json"
