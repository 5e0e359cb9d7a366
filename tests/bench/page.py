"""docs/benchmarks.md, to which several programs of `make bench` write a section each."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/benchmarks.md"
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    """Heading -> text of each section, without what stands before the first."""
    starts = [*_HEADING.finditer(text)]
    ends = [*(match.start() for match in starts[1:]), len(text)]
    return {match[1]: text[match.end() : end].strip() for match, end in zip(starts, ends, strict=True)}


def put(heading: str, text: str, page: Path = PAGE) -> None:
    """Put a section in the place of the one with that heading, or behind the last."""
    old = page.read_text(encoding="utf-8")
    head = old[: match.start()] if (match := _HEADING.search(old)) else old
    found = sections(old) | {heading: text.strip()}
    page.write_text(head + "\n".join(f"## {name}\n\n{part}\n" for name, part in found.items()), encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def machine() -> str:
    """This machine without its name."""
    cpus = Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.+)$", cpus, re.MULTILINE)
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    release = platform.freedesktop_os_release()["PRETTY_NAME"]
    return (
        f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, {memory:.0f} GiB of memory, "
        f"{release}, Python {platform.python_version()}"
    )
