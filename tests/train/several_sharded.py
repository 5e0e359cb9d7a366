"""Runs the train stage of several plans in one process a rank, as several.py does: several_sharded.py PLAN...

In the environment of the engines deepspeed and fsdp.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.plan import from_json
from launcher.work import train
from launcher.work.context import from_environment


def main(plans: list[str]) -> None:
    for path in plans:
        train.run(from_environment(from_json(Path(path).read_text()), "train", os.environ))
        forget()


def forget() -> None:
    """Make DeepSpeed forget the groups of the last run."""
    if "deepspeed" in sys.modules:
        from deepspeed.comm import comm
        from deepspeed.utils import groups

        comm.cdb = None
        groups._WORLD_GROUP = None


if __name__ == "__main__":
    main(sys.argv[1:])
