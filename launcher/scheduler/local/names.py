"""File name patterns of --output and --error (sbatch(1), srun(1): FILENAME PATTERN)."""

from __future__ import annotations

import re
from collections.abc import Mapping


def fill(pattern: str, values: Mapping[str, object]) -> str:
    """Replace %j, %3t (padded), %% and so on; letters without a value stay as they are.

    As in Slurm, a backslash anywhere turns replacement off, and is itself removed.
    """
    if "\\" in pattern:
        return pattern.replace("\\", "")

    def replace(match: re.Match[str]) -> str:
        width, letter = match.groups()
        if letter == "%":
            return "%"
        if letter not in values:
            return match[0]
        text = str(values[letter])
        return text.zfill(min(int(width), 10)) if width and text.isdigit() else text

    return re.sub(r"%(\d*)([%A-Za-z])", replace, pattern)
