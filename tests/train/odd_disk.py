"""The train stage with a disk that is slow or full for one rank: odd_disk.py PLAN slow|full STEP RANK.

slow: the write of that step's checkpoint never ends. full: its file is /dev/full, to which nothing can be written.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from launcher.work.__main__ import main
from launcher.work.ending import end_process
from launcher.work.megatron import saving


def spoil(how: str, step: str, rank: str) -> None:
    write = saving.write

    def spoilt(request: Any) -> list[Path]:
        paths = [path for path, _, _ in request.async_fn_args[1]] if request.async_fn else []
        if os.environ["SLURM_PROCID"] == rank and paths and f"step-{int(step):08d}" in str(paths[0]):
            if how == "slow":
                time.sleep(600)
            os.symlink("/dev/full", paths[0])
        return write(request)

    saving.write = spoilt


if __name__ == "__main__":
    plan, *odd = sys.argv[1:]
    from launcher.work.megatron import process

    prepare = process.prepare

    def prepared() -> None:
        prepare()
        spoil(*odd)

    process.prepare = prepared
    code = main([plan, "train"])
    sys.stdout.flush()
    sys.stderr.flush()
    end_process(code)
