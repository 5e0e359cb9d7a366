"""`scontrol` as jobs of the local scheduler find it: requeue JOB, show hostnames [LIST], ping."""

from __future__ import annotations

import os
import sys

from launcher.scheduler.local import folders
from launcher.scheduler.local.hostlist import expand


def main(arguments: list[str]) -> int:
    """`scontrol COMMAND ...`."""
    match arguments:
        case ["requeue", ids]:
            return max(_requeue(job_id) for job_id in ids.split(","))
        case ["requeue", *ids] if ids:
            return max(_requeue(job_id) for job_id in ids)
        case ["ping"]:
            print("the local scheduler is UP")
            return 0
        case ["show", word, *lists] if word in ("hostnames", "hostname") and len(lists) < 2:
            try:
                found = expand(lists[0] if lists else os.environ.get("SLURM_JOB_NODELIST", ""))
            except ValueError as error:
                return _error(str(error))
            print(*found, sep="\n")
            return 0
    return _error(
        f"{' '.join(arguments)!r} is not known to the local scheduler, which has requeue, show hostnames, ping"
    )


def _requeue(job_id: str) -> int:
    from launcher.scheduler.local.table import Table  # only here: SQLite is not needed for host names

    run_dir = os.environ.get(folders.RUN, "")
    if not run_dir:
        return _error("requeue works inside a job of the local scheduler only")
    table = Table(folders.state_dir_of(run_dir))
    rows = table.by_ids([job_id])[job_id]
    if not rows:
        return _error(f"Invalid job id specified for job {job_id}")
    for row in rows:
        if not row.request.requeue:
            return _error(f"Requested operation is presently disabled for job {row.job_id} (--no-requeue)")
        if not table.ask_requeue(row.id):
            return _error(f"Job {row.job_id} does not run or is being cancelled; not requeued")
    return 0


def _error(text: str) -> int:
    print(f"scontrol: error: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
