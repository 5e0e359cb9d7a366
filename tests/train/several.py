"""Runs the train stage of several plans in one process a rank: several.py PLAN... (in the train environment).

Starting a process takes ten times as long as training a tiny model, so tests of many methods share the start.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.plan import from_json
from launcher.work import train
from launcher.work.context import from_environment
from launcher.work.megatron import cpu


def main(plans: list[str]) -> None:
    for number, path in enumerate(plans):
        train.run(from_environment(from_json(Path(path).read_text()), "train", os.environ))
        forget()
        if not number:
            cpu.enable = lambda: False  # its patches are in place


def forget() -> None:
    """Make Megatron-core and mcore-bridge forget the groups of the last run."""
    from mcore_bridge.bridge import gpt_bridge
    from megatron.core import parallel_state
    from megatron.core.num_microbatches_calculator import destroy_num_microbatches_calculator

    parallel_state.destroy_model_parallel()
    destroy_num_microbatches_calculator()
    gpt_bridge.EP_PP_GROUP = None


if __name__ == "__main__":
    main(sys.argv[1:])
