"""Units: durations, sizes and counts as people write them, and back."""

from __future__ import annotations

import re

SECONDS_PER_DAY = 86400.0

_DURATION = re.compile(r"^\s*(?:(\d+)\s*d)?\s*(?:(\d+)\s*h)?\s*(?:(\d+)\s*m(?:in)?)?\s*(?:(\d+)\s*s)?\s*$")
_SLURM_TIME = re.compile(r"^(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?$")
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT])?(?:i?[bB])?\s*$")
_SIZE_FACTOR_MIB = {"k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0 * 1024.0}


def parse_minutes(text: str | int) -> int:
    """Minutes from 90, "90", "1h30m", "2d", "45s" (rounded up) or Slurm's "1-12:00:00" and "01:30:00".

    Raises ValueError for anything else, and for durations below one second.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        seconds = text * 60
    elif isinstance(text, str) and text.strip().isdigit():
        seconds = int(text) * 60
    elif isinstance(text, str) and (match := _SLURM_TIME.match(text.strip())):
        days, first, second, third = match.groups()
        if third is None and days is None:  # sbatch: "minutes:seconds"
            seconds = int(first) * 60 + int(second)
        else:  # "hours:minutes:seconds", "days-hours:minutes[:seconds]"
            seconds = int(days or 0) * 86400 + int(first) * 3600 + int(second) * 60 + int(third or 0)
    elif isinstance(text, str) and text.strip() and (match := _DURATION.match(text)):
        d, h, m, s = (int(group or 0) for group in match.groups())
        seconds = d * 86400 + h * 3600 + m * 60 + s
    else:
        raise ValueError(f"{text!r} is not a duration; write minutes (90) or a text like 1h30m")
    if seconds <= 0:
        raise ValueError(f"{text!r} is not longer than zero")
    return -(-seconds // 60)


def slurm_time(minutes: int) -> str:
    """Minutes as sbatch's --time takes it: "D-HH:MM:00"."""
    days, rest = divmod(minutes, 1440)
    return f"{days}-{rest // 60:02d}:{rest % 60:02d}:00"


def parse_mib(text: str | int) -> int:
    """MiB from 512 (MiB), "512M", "24G", "1.5T". Raises ValueError for anything else."""
    if isinstance(text, int) and not isinstance(text, bool):
        mib = float(text)
    elif isinstance(text, str) and (match := _SIZE.match(text)):
        mib = float(match[1]) * _SIZE_FACTOR_MIB[(match[2] or "m").lower()]
    else:
        raise ValueError(f"{text!r} is not a size; write MiB (512) or a text like 24G")
    if mib < 1:
        raise ValueError(f"{text!r} is less than one MiB")
    return round(mib)


def show_seconds(seconds: float) -> str:
    """A duration for people: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def show_mib(mib: float) -> str:
    """A size for people: "512 MiB", "1.5 GiB"."""
    if mib < 1024:
        return f"{mib:.0f} MiB"
    if mib < 1024 * 1024:
        return f"{mib / 1024:.1f} GiB"
    return f"{mib / 1024 / 1024:.1f} TiB"


def show_count(count: float) -> str:
    """A count for people: "512", "1.2 k", "134.5 M", "70.6 B"."""
    for limit, suffix in ((1e3, ""), (1e6, " k"), (1e9, " M"), (1e12, " B")):
        if count < limit:
            return f"{count:.0f}" if not suffix else f"{count / limit * 1e3:.1f}{suffix}"
    return f"{count / 1e12:.1f} T"


def counted(number: int, what: str) -> str:
    """A number with its noun: "1 stage", "2 stages"."""
    return f"{number} {what}" + ("" if number == 1 else "s")
