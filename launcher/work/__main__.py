"""`python -m launcher.work PLAN STAGE`: run one rank of one stage and classify how it ended.

Engines may start helper processes with the spawn method, which imports this module again: it stays cheap and
guarded.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
import traceback
from pathlib import Path

from launcher.errors import SwiftlaunchError
from launcher.failures import NODE, NOT_AGAIN, classify
from launcher.plan import from_json
from launcher.record import write_json, write_text
from launcher.work.context import EXIT_FATAL, EXIT_REQUEUE, Context, Requeue, from_environment, node_name
from launcher.work.ending import end_process
from launcher.work.versions import installed_versions


def main(arguments: list[str]) -> int:
    plan = from_json(Path(arguments[0]).read_text(encoding="utf-8"))
    context = from_environment(plan, arguments[1], os.environ)
    context.catch_signals()
    context.event(
        "attempt_started",
        job_id=os.environ.get("SLURM_JOB_ID", ""),
        host=node_name(),
        pid=os.getpid(),
        world_size=context.world_size,
        versions=installed_versions() if context.is_main else {},
    )
    started = time.monotonic()
    context.watchdog.start()
    try:
        importlib.import_module(f"launcher.work.{context.stage.worker}").run(context)
    except Requeue as stop:
        context.event("attempt_ended", outcome="requeued", exit_code=EXIT_REQUEUE, error=str(stop))
        return EXIT_REQUEUE
    except BaseException as error:
        return _failed(context, error)
    finally:
        context.watchdog.stop()
    context.event("attempt_ended", outcome="completed", exit_code=0, seconds=time.monotonic() - started)
    return 0


def _failed(context: Context, error: BaseException) -> int:
    found = classify(error)
    code = EXIT_FATAL if found.kind in NOT_AGAIN else 1
    text = str(error) or repr(error)
    if not isinstance(error, SwiftlaunchError):
        traceback.print_exception(error)
    who = f"{context.group} rank {context.rank}" if context.group else f"rank {context.rank}"
    print(f"error: {context.stage.name} {who}: {text}", file=sys.stderr, flush=True)
    error_class = type(error).__name__
    # the file first: the job script needs the class; on a full disk the exit code has to say it alone
    with contextlib.suppress(OSError):
        failure = context.files.failure(
            context.stage.name, context.attempt, context.rank, fatal=code == EXIT_FATAL, group=context.group
        )
        write_json(
            failure,
            {
                "rank": context.rank,
                "node": node_name(),
                "time": time.time(),
                "kind": found.kind,
                "error": text,
                "error_class": error_class,
                "exit_code": code,
                # an error of ours has it in its text
                "hint": "" if getattr(error, "hint", "") else found.hint.replace("{table}", context.stage.table),
            },
        )
        if found.kind == NODE:
            write_text(context.files.sick(context.stage.name, context.attempt, node_name()), "")
        context.event("attempt_ended", outcome="failed", exit_code=code, error=text, error_class=error_class)
    return code


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    end_process(status)
