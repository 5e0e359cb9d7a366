"""Exports runs as the export stage does and looks at what came out: export_checks.py PLAN... (train environment).

Prints a JSON list of what hf_loss.py finds in each exported model at the step after the run's last.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from launcher.plan import from_json
from launcher.work import export
from launcher.work.context import from_environment
from tests.train.hf_loss import looked_at


def main(plans: list[str]) -> None:
    found = []
    for path in plans:
        plan = from_json(Path(path).read_text())
        context = from_environment(plan, "export", os.environ)
        context.files.stage("export").mkdir(parents=True)
        export.run(context)
        steps = plan.stage("train").options["train"]["steps"]
        found.append(looked_at(plan, context.files.artifact("export"), steps))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
