"""How states, times and stages are worded in every view."""

from __future__ import annotations

import itertools
import time

from rich.text import Text

from launcher.plan import Stage
from launcher.states import State

_STYLES = {
    State.NOT_SUBMITTED: "dim",
    State.PENDING: "yellow",
    State.RUNNING: "cyan",
    State.REQUEUED: "yellow",
    State.COMPLETED: "green",
    State.CANCELLED: "magenta",
    State.UNKNOWN: "yellow",
}
_RUN_STYLES = {
    "PENDING": "yellow",
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "CANCELLED": "magenta",
    "INCOMPLETE": "yellow",
    "UNKNOWN": "yellow",
}
_BARS = "▁▂▃▄▅▆▇█"


def state_text(state: State) -> Text:
    """A job's state: green is done, cyan runs, yellow waits, red needs a person."""
    return Text(state.value, style=_STYLES.get(state, "bold red"))


def run_state_text(state: str) -> Text:
    """A whole run's state."""
    return Text(state, style=_RUN_STYLES.get(state, "bold red"))


def clock(seconds: float) -> str:
    """A running clock: "0:07", "12:05", "1:02:03", "2d 03:00:00"."""
    whole = max(0, int(seconds))
    days, rest = divmod(whole, 86400)
    hours, minutes = rest // 3600, rest % 3600 // 60
    if days:
        return f"{days}d {hours:02d}:{minutes:02d}:{whole % 60:02d}"
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def moment(unix_seconds: float) -> str:
    """A local time: "2026-11-22 14:03:59"."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_seconds))


def soon(unix_seconds: float) -> str:
    """A time to come, as short as it can be told: "now", "at 14:03", "on 2026-11-23 at 07:00"."""
    if unix_seconds <= time.time() + 60:
        return "now"
    when = time.localtime(unix_seconds)
    day = "" if when[:3] == time.localtime()[:3] else f"on {time.strftime('%Y-%m-%d', when)} "
    return f"{day}at {time.strftime('%H:%M', when)}"


def engine(stage: Stage) -> str:
    """The engine or method that does a stage, as its options say it: "megatron sft", "gptq 4 bit", "vllm"."""
    options = stage.options
    if stage.worker == "train":
        section = options.get("train", {})
        return " ".join(str(section[key]) for key in ("engine", "method", "tuner") if section.get(key))
    if stage.worker == "quantize":
        section = options.get("quantize", {})
        bits = f" {section['bits']} bit" if section.get("bits") else ""
        return f"{section.get('method', '')}{bits}".strip()
    return str(options.get("engine") or options.get(stage.worker, {}).get("engine") or "")


def sparkline(values: list[float], width: int) -> str:
    """The course of a figure in `width` characters or fewer; each is the mean of its share of the values."""
    if not values or width < 1:
        return ""
    shares = min(width, len(values))
    edges = [index * len(values) // shares for index in range(shares + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return _BARS[0] * shares
    return "".join(_BARS[round((mean - low) / (high - low) * (len(_BARS) - 1))] for mean in means)
