"""Which checkpoints there are, and which of them are to stay."""

from __future__ import annotations

import math
from pathlib import Path

from launcher.record import read_json

MANIFEST = "manifest.json"


def published(folder: Path) -> list[Path]:
    """Published checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).is_file())


def outdated(folder: Path, *, last: int, best: int) -> list[Path]:
    """Checkpoints that are neither among the newest `last` nor among the `best` by their loss, which is to be low."""
    losses = {path: _loss(path) for path in published(folder)[:-last]}
    kept = sorted(losses, key=losses.__getitem__)[:best]
    return [path for path in losses if path not in kept]


def _loss(path: Path) -> float:
    try:
        return float(read_json(path / MANIFEST)["loss"])
    except (ValueError, KeyError, TypeError):  # a damaged manifest, or one that knows none
        return math.inf
