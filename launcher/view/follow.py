"""A run as it goes: a live line for each stage on a terminal, a line per change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.standing import RunStatus, StageStatus
from launcher.states import State
from launcher.units import show_seconds
from launcher.view.course import Course, Courses
from launcher.view.metrics import slow_text, spike_text, validation_text
from launcher.view.results import headline
from launcher.view.words import clock, run_state_text, soon, state_text

QUIET_SECONDS = 10.0  # between two plain lines of one stage whose state stays the same
WIDE = 100  # columns from which there is room for the course of the loss


class Board:
    """The lines of a run as they stand now; clocks and times left move on between two looks."""

    def __init__(self, status: RunStatus, courses: Courses) -> None:
        self._courses = courses
        self.look(status)

    def look(self, status: RunStatus) -> None:
        """Take a newer status."""
        self._measured = {stage.name: _course(self._courses, stage) for stage in status.stages if _goes(stage)}
        self._servers = {stage.name: server_address(stage) for stage in status.stages}
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """A heading, a row for each stage, and below them what went wrong."""
        status, wide = self._status, options.max_width >= WIDE
        yield Text.assemble((status.run_id, "bold"), "  ", run_state_text(status.state), f"  {status.site}")
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2 if wide else 1, 0, 0))
        for name in ("stage", "state", "try", "time", "note", "left"):
            table.add_column(name, justify="right" if name in ("time", "left") else "left", no_wrap=name != "note")
        for stage in status.stages:
            course = self._measured.get(stage.name)
            table.add_row(
                Text(stage.name),
                state_text(stage.state),
                Text(f"#{stage.attempts}" if stage.attempts > 1 else "", style="yellow"),
                Text(elapsed(stage)),
                self._note(stage, course, wide=wide),
                Text(f"ETA {left}" if course and (left := course.left_text()) else ""),
            )
        yield table
        for stage in status.stages:
            if stage.error:
                yield Text.assemble((f"{stage.name}: ", "bold red"), stage.error)
            elif stage.setback:
                without = f"; goes on without {', '.join(stage.excluded)}" if stage.excluded else ""
                yield Text.assemble((f"{stage.name}: ", "bold yellow"), stage.setback, without)
            for remark in remarks(stage):
                yield Text.assemble((f"{stage.name}: ", "bold yellow"), remark)
        if status.trouble:
            yield Text.assemble(("no answer: ", "bold yellow"), status.trouble)

    def _note(self, stage: StageStatus, course: Course | None, *, wide: bool) -> Text:
        text = course.text(spark_width=16 if wide else 0) if course else self._servers[stage.name] or note(stage)
        line = Text(" ".join(text.splitlines()), no_wrap=True, overflow="ellipsis")
        return bar(course.share, 20 if wide else 8).append("  " if wide else " ").append_text(line) if course else line


def bar(share: float, width: int) -> Text:
    """A bar of `width` characters that is readable without colour too."""
    full = int(share * width)
    return Text.assemble(("━" * full, "cyan"), ("·" * (width - full), "dim"), no_wrap=True, overflow="ellipsis")


def show_status(status: RunStatus, console: Console) -> None:
    """Print the run as it stands, and its warnings."""
    console.print(Board(status, Courses(status.run_dir)))
    for warning in status.warnings:
        console.print(Text.assemble(("warning: ", "bold yellow"), warning))


def show_while_running(statuses: Iterable[RunStatus], console: Console) -> RunStatus:
    """Show each status as it comes, in place on a terminal; returns the last one."""
    if console.is_terminal and not console.is_dumb_terminal:
        return _live(statuses, console)
    return _plain(statuses, console)


def elapsed(stage: StageStatus) -> str:
    """How long the stage has run, its waits for another attempt included; "" before it started."""
    if stage.started is None:
        return ""
    if stage.ended is None and stage.state.terminal:
        return ""
    return clock((stage.ended if stage.ended is not None else time.time()) - stage.started)


def note(stage: StageStatus) -> str:
    """What there is to say of a stage that reports no progress: its result, its reason or its estimate."""
    if stage.result is not None:
        return headline(stage.worker, stage.result.get("metrics", {}))
    if stage.points:
        return ", ".join([show_counts(stage.points), *([stage.error] if stage.error else [])])
    if stage.error:
        return stage.error
    if stage.why or stage.reason:
        return (stage.why or stage.reason) + _expected(stage)
    if stage.estimate_seconds is not None and not stage.state.terminal:
        return f"about {show_seconds(stage.estimate_seconds)}"
    return ""


def show_counts(points: dict[str, int]) -> str:
    """How many points are in each state: "12 completed, 3 running, 1 failed"."""
    order = ("COMPLETED", "RUNNING", "PENDING")
    names = sorted(points, key=lambda name: (order.index(name) if name in order else len(order), name))
    return ", ".join(f"{points[name]} {name.lower().replace('_', ' ')}" for name in names)


def _course(courses: Courses, stage: StageStatus) -> Course | None:
    """How far a stage is, a stage of a sweep's points by those that have ended."""
    if not stage.points:
        return courses.look(stage)
    rest = {name: count for name, count in stage.points.items() if name != State.COMPLETED.value}
    unit = ", ".join(["points", *([show_counts(rest)] if rest else [])])
    done = stage.points.get(State.COMPLETED.value, 0)
    return Course(done=done, total=sum(stage.points.values()), unit=unit, at=time.time())


def _expected(stage: StageStatus) -> str:
    """When a waiting stage may start, as the scheduler expects it now."""
    return f"; may start {soon(stage.expected)}" if stage.expected is not None else ""


def remarks(stage: StageStatus) -> list[str]:
    """What of a running stage's training is worth a line: the newest validation, a slow rank, the newest loss spike."""
    if not _goes(stage):
        return []
    slow = slow_text(stage.ranks) if stage.ranks else ""
    looked = [validation_text(stage.validation)] if stage.validation else []
    return [*looked, *([slow] if slow else []), *([spike_text(stage.spike)] if stage.spike else [])]


def server_address(stage: StageStatus) -> str:
    """Where a running server of this run answers, "" while there is none."""
    return f"answers at http://{stage.endpoint['host']}:{stage.endpoint['port']}/v1" if stage.endpoint else ""


def _goes(stage: StageStatus) -> bool:
    return stage.state in (State.RUNNING, State.REQUEUED, State.UNKNOWN) and stage.result is None


def _live(statuses: Iterable[RunStatus], console: Console) -> RunStatus:
    looks = iter(statuses)
    last = next(looks)
    board = Board(last, Courses(last.run_dir))
    with Live(board, console=console, refresh_per_second=2) as live:
        for last in looks:
            board.look(last)
        live.refresh()
    return last


def _plain(statuses: Iterable[RunStatus], console: Console) -> RunStatus:
    """A line when a stage's state changes at once, one for its progress every QUIET_SECONDS at most."""
    states: dict[str, tuple[State, int, str]] = {}
    progress: dict[str, tuple[float, str]] = {}
    courses: Courses | None = None
    last: RunStatus | None = None
    trouble = ""
    for last in statuses:
        courses = courses or Courses(last.run_dir)
        if last.trouble != trouble:
            trouble = last.trouble
            words = f"no answer: {trouble}" if trouble else "the scheduler answers again"
            console.print(Text(f"{time.strftime('%H:%M:%S')}  {words}"), soft_wrap=True)
        for stage in last.stages:
            address = server_address(stage)
            state = (stage.state, max(stage.attempts, 1), address)  # that the first attempt began is no news
            course = _course(courses, stage) if _goes(stage) else None
            text = "  ".join([course.text(), *remarks(stage)]) if course else address or note(stage)
            since, shown = progress.get(stage.name, (0.0, ""))
            now = time.monotonic()
            quiet = now - since < QUIET_SECONDS or text == shown or course is None
            if states.get(stage.name) == state and quiet:
                continue
            states[stage.name], progress[stage.name] = state, (now, text)
            width = max(len(stage.name) for stage in last.stages)
            console.print(Text(_line(stage, width, text, course.left_text() if course else "")), soft_wrap=True)
    if last is None:
        raise ValueError("there is no status to follow")
    return last


def _line(stage: StageStatus, width: int, text: str, left: str) -> str:
    words = [time.strftime("%H:%M:%S"), stage.name.ljust(width), stage.state.value.ljust(9)]
    if stage.attempts > 1:
        words.append(f"attempt {stage.attempts}")
    words.append(" ".join(text.splitlines()))
    if left:
        words.append(f"ETA {left}")
    return "  ".join(word for word in words if word).rstrip()
