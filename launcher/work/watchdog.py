"""Finds out that a rank hangs: no step for many times the usual time. Then all ranks' stacks are written down.

A thread of each rank watches. The one that finds out first writes `hang` into the folder of the attempt's ranks; the
others see it there, and each one that still can writes where it is (`hang-RANK.json`, `stacks-RANK.txt`). Ranks that
cannot are looked at from outside by one of their node, with py-spy where there is one. A rank whose thread cannot run,
because something holds the interpreter's lock, is ended by faulthandler's own clock.

Time in which this thread did not run either (a suspended job) does not count.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from launcher.failures import HANG
from launcher.record import read_events, read_json, write_json
from launcher.work.ending import end_process

if TYPE_CHECKING:
    from launcher.work.context import Context

_LEAST_INTERVALS = 5  # before that nobody knows what is usual
_INTERVALS = 50  # newest, whose median is the usual time
_POLL_SECONDS = 5.0
_ANSWER_SECONDS = 15.0  # for the other ranks to say where they are
_BACKSTOP_SECONDS = 30.0  # after the limit faulthandler ends a rank whose watching thread cannot run
_PY_SPY_SECONDS = 20.0
_STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waits for a disk or file system", "Z": "has ended"}


class Watchdog:
    """Watches the main thread of one rank. `beat` and the rest are called there."""

    def __init__(self, context: Context) -> None:
        resume = context.stage.resume
        self._context = context
        self._factor, self._floor = resume.hang_factor, resume.hang_floor_seconds
        self._start_limit = max(resume.hang_start_seconds, resume.hang_floor_seconds)
        self._folder = context.files.ranks(context.stage.name, context.attempt, context.group)
        self._poll = min(_POLL_SECONDS, self._floor / 4)
        self._answer = min(_ANSWER_SECONDS, 5 * self._floor)
        self._backstop = min(_BACKSTOP_SECONDS, 5 * self._floor)
        self._lock = threading.Lock()
        self._steady = False
        self._resting = True
        self._unhurried = 0
        self._done: int | None = None
        self._silent = 0.0
        self._last_beat: float | None = None
        self._intervals: deque[float] = deque(maxlen=_INTERVALS)
        self._stacks: IO[str] | None = None
        self._over = threading.Event()

    def start(self) -> None:
        """Begin to watch; without a factor nothing is watched."""
        if self._factor:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """The worker has ended, well or not: whatever takes long now is no hang."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):
            if self._stacks is not None and not os.fstat(self._stacks.fileno()).st_size:
                self._path("stacks", "txt").unlink(missing_ok=True)

    def expect_steps(self) -> None:
        """From now on steps follow each other; the first one may take long."""
        with self._lock:
            self._steady, self._resting, self._silent = True, False, 0.0

    def beat(self, done: int, total: int) -> None:
        """A step or a unit of progress has ended. After the last one nothing is expected, or the result."""
        now = time.monotonic()
        with self._lock:
            if self._last_beat is not None and self._done is not None and done > self._done:
                self._intervals.append(now - self._last_beat)
            elif self._done is not None and done < self._done:
                self._intervals.clear()  # another piece of work
            self._done, self._last_beat, self._silent = done, now, 0.0
            self._resting = not self._steady and done >= total
            if done >= total:
                self._intervals.clear()

    @contextlib.contextmanager
    def unhurried(self) -> Iterator[None]:
        """What is done within may take as long as the first step."""
        with self._lock:
            self._unhurried += 1
        try:
            yield
        finally:
            with self._lock:
                self._unhurried -= 1
                self._silent, self._last_beat = 0.0, time.monotonic()

    def _limit(self) -> float:
        """Seconds of silence that are a hang, now."""
        if self._resting:
            return float("inf")
        usual = len(self._intervals) >= _LEAST_INTERVALS
        if usual and not self._unhurried:
            return max(self._floor, self._factor * statistics.median(self._intervals))
        return self._start_limit if self._steady else float("inf")

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._over.wait(self._poll):
            now = time.monotonic()
            with self._lock:
                self._silent += min(now - last, 3 * self._poll)
                silent, limit = self._silent, self._limit()
            last = now
            try:
                self._look(silent, limit)
            except OSError:  # the run's file system: that is not the rank's fault, so its clock must not run on
                faulthandler.cancel_dump_traceback_later()
                if silent > limit + self._backstop:  # but one that hangs too ends, if without a word
                    end_process(1)

    def _look(self, silent: float, limit: float) -> None:
        self._arm(limit - silent)
        if self._path("hang", "", "").exists():
            self._as_a_witness()
        elif silent > limit:
            self._as_the_finder(silent, limit)

    def _arm(self, seconds_left: float) -> None:
        """Set faulthandler's clock, which runs without the interpreter; a new one replaces the old one at once."""
        if seconds_left == float("inf") or self._over.is_set():
            faulthandler.cancel_dump_traceback_later()
            return
        if self._stacks is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stacks = self._path("stacks", "txt").open("a")
        seconds = max(seconds_left, 0.0) + self._backstop
        faulthandler.dump_traceback_later(seconds, exit=True, file=self._stacks)

    def _path(self, name: str, suffix: str, rank: int | str | None = None) -> Path:
        who = self._context.rank if rank is None else rank
        return self._folder / (f"{name}-{who}.{suffix}" if suffix else name)

    def _as_the_finder(self, silent: float, limit: float) -> None:
        if not self._claim("hang"):
            return self._as_a_witness()
        faulthandler.cancel_dump_traceback_later()
        self._testify()
        self._look_at_this_node()
        everybody = range(self._context.world_size)
        deadline = time.monotonic() + self._answer
        while time.monotonic() < deadline and not all(self._path("hang", "json", rank).exists() for rank in everybody):
            time.sleep(0.2)
        if self._over.is_set():
            return None
        usual = f", usual are {statistics.median(self._intervals):.3g} s" if self._intervals else ""
        said = {rank: read_json(self._path("hang", "json", rank)) for rank in everybody}
        culprit, whom = _behind(said)
        node = self._node_of(culprit) if culprit is not None else ""
        after = f" after step {self._done}" if self._done is not None else ""
        error = f"no step for {silent:.0f} s{after} (limit {limit:.0f} s{usual}); {whom}"
        self._report(error, self._context.rank if culprit is None else culprit, node)
        end_process(1)

    def _as_a_witness(self) -> None:
        """Another rank has found out: say where this one is, then leave the end to that rank."""
        faulthandler.cancel_dump_traceback_later()
        self._testify()
        self._look_at_this_node()
        if not self._over.wait(4 * self._answer + _PY_SPY_SECONDS):
            end_process(1)

    def _testify(self) -> None:
        if self._stacks is None:
            self._stacks = self._path("stacks", "txt").open("a")
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        where = [f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in traceback.extract_stack(frame)[-4:]]
        write_json(
            self._path("hang", "json"),
            {"rank": self._context.rank, "done": self._done, "silent": self._silent, "where": where},
        )

    def _look_at_this_node(self) -> None:
        """Once on each node: what can be seen from outside of those of its ranks that do not answer."""
        from launcher.work.context import node_name

        if not self._claim(f"hang-on-{node_name()}"):
            return
        time.sleep(2 * self._poll)
        for rank, (node, pid) in self._ranks().items():
            if node == node_name() and not self._path("hang", "json", rank).exists():
                with self._path("stacks", "txt", rank).open("a") as file:
                    file.write(f"rank {rank} does not answer; process {pid} {_state(pid)}\n{_py_spy(pid)}\n")

    def _ranks(self) -> dict[int, tuple[str, int]]:
        """Node and process id of each rank of this attempt."""
        context = self._context
        events = read_events(context.files.events, stage=context.stage.name, edge_bytes=4096)
        return {
            int(event["rank"]): (str(event["host"]), int(event["pid"]))
            for event in events
            if event["kind"] == "attempt_started"
            and event["attempt"] == context.attempt
            and event.get("group", "") == context.group
        }

    def _node_of(self, rank: int) -> str:
        return self._ranks().get(rank, ("", 0))[0]

    def _claim(self, name: str) -> bool:
        """Whether this rank is the first to make the file of that name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        return True

    def _report(self, error: str, rank: int, node: str) -> None:
        context = self._context
        print(f"error: {context.stage.name} hangs: {error}", file=sys.stderr, flush=True)
        hint = f"the stacks of all ranks are in {self._folder}/stacks-*.txt; a step that may take longer: raise "
        with contextlib.suppress(OSError):
            write_json(
                context.files.failure(
                    context.stage.name, context.attempt, context.rank, fatal=False, group=context.group
                ),
                {
                    "rank": rank,
                    "node": node,
                    "time": time.time() - self._silent,
                    "kind": HANG,
                    "error": error,
                    "error_class": "Hang",
                    "exit_code": 1,
                    "hint": f"{hint}resume.hang_factor or hang_floor_seconds",
                },
            )
            context.event("attempt_ended", outcome="failed", exit_code=1, error=error, error_class="Hang")


def _behind(said: dict[int, Any]) -> tuple[int | None, str]:
    """The rank that the others wait for, as far as they tell it, and that in words."""
    silent = [rank for rank, words in said.items() if not words]
    if silent:
        return silent[0], f"{_named(silent)} without an answer"
    least = min((words["done"] if words["done"] is not None else -1) for words in said.values())
    behind = [rank for rank, words in said.items() if (words["done"] if words["done"] is not None else -1) == least]
    if len(behind) < len(said):
        return behind[0], f"{_named(behind)} behind, at step {max(least, 0)}"
    places = Counter(words["where"][-1] if words["where"] else "" for words in said.values())
    usual, count = places.most_common(1)[0]
    odd = [rank for rank, words in said.items() if (words["where"][-1] if words["where"] else "") != usual]
    if odd and count > len(odd):
        return odd[0], f"{_named(odd)} elsewhere than the others, in {said[odd[0]]['where'][-1]}"
    return None, f"all ranks answer, in {usual}"


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _state(pid: int) -> str:
    """What the kernel says of a process of this node."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return f"is in state {state}" + (f" ({_STATES[state]})" if state in _STATES else "")
    except OSError:
        return "is gone"


def _py_spy(pid: int) -> str:
    """The stacks of another process by py-spy, from PATH or this environment; or why there are none."""
    beside = Path(sys.executable).with_name("py-spy")
    program = shutil.which("py-spy") or (str(beside) if beside.exists() else "")
    if not program:
        return "py-spy is not installed here: no stacks"
    try:
        # it reads the memory only: a process that is stopped cannot be stopped once more
        words = [program, "dump", "--nonblocking", "--pid", str(pid)]
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, timeout=_PY_SPY_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"py-spy: {error}"
    return done.stdout + done.stderr
