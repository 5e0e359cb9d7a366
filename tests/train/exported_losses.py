"""Exports runs of the engines deepspeed and fsdp, and looks at what came out: exported_losses.py PLAN...

Prints JSON by run folder: `loss`, `merged_difference` as hf_loss.py finds them in the exported model; `checkpoint`, the
loss of the step after the oldest checkpoint that is kept, in the weights that were extracted from it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import hf_loss
import torch.distributed as dist

from launcher.plan import from_json
from launcher.work import export, ranks
from launcher.work.context import Context, from_environment


def main(plans: list[str]) -> None:
    found = {}
    ranks.leave = dist.barrier
    for path in plans:
        plan = from_json(Path(path).read_text())
        context = from_environment(plan, "export", os.environ)
        context.files.stage("export").mkdir(parents=True, exist_ok=True)
        export.run(context)
        steps = plan.stage("train").options["train"]["steps"]
        said = looked_at(path, context.files.artifact("export"), steps)
        found[Path(plan.run_dir).name] = {**said, "checkpoint": from_checkpoint(path, context)}
        ranks.meet = lambda *_, **__: None
    print(json.dumps(found))


def looked_at(plan: str, exported: Path, step: int) -> dict[str, float]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        hf_loss.main(plan, str(exported), str(step))
    return dict(json.loads(out.getvalue().splitlines()[-1]))


def from_checkpoint(plan: str, context: Context) -> dict[str, float]:
    """The oldest checkpoint's weights, exported in the place of those at the end."""
    kept = sorted(context.files.checkpoints("train").glob("step-*"))[0]
    copied = context.files.stage("export") / kept.name
    shutil.copytree(kept, copied)
    to = context.files.root / "early"
    options = {**context.options, "checkpoint": str(copied), "to": str(to)}
    context.stage = replace(context.stage, options=options)
    export.run(context)
    assert not copied.exists(), "its links are taken away"
    step = int(kept.name.removeprefix("step-"))
    return {"step": step, **looked_at(plan, to, step)}


if __name__ == "__main__":
    main(sys.argv[1:])
