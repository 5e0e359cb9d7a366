"""Runs the train stage of plans that end with an error, as several.py does: refused.py PLAN...

What the error says is written beside the plan, refused-RANK.json. A plan that is named twice has a second attempt, as
after `resume`, which has to end well.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launcher.errors import WorkerError
from launcher.plan import from_json
from launcher.record import write_json
from launcher.work import ranks, train
from launcher.work.context import from_environment
from launcher.work.megatron import cpu, process

sys.path.insert(0, str(Path(__file__).parent))
from several import Groups


def main(plans: list[str]) -> None:
    groups = Groups()
    process.join, ranks.leave = groups.join, groups.leave  # type: ignore[assignment]
    done: set[str] = set()
    for number, path in enumerate(plans):
        environ = {**os.environ, "SWIFTLAUNCH_ATTEMPT": "2" if path in done else "1"}
        context = from_environment(from_json(Path(path).read_text()), "train", environ)
        context.files.attempt("train", context.attempt).mkdir(parents=True, exist_ok=True)
        try:
            train.run(context)
            if path not in done:
                sys.exit(f"{path} ended well")
        except WorkerError as error:
            if path in done:
                raise
            said = {"message": error.message, "where": error.where, "hint": error.hint}
            write_json(context.files.root / f"refused-{context.rank}.json", said)
            groups.leave()
        done.add(path)
        if not number:
            cpu.enable = lambda: False  # its patches are in place


if __name__ == "__main__":
    main(sys.argv[1:])
