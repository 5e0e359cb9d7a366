"""Choose the best point of a sweep: whatever follows is done in its folder."""

from __future__ import annotations

import os

from launcher.errors import WorkerError
from launcher.sweep import point_files, read_sweep, scores
from launcher.work.context import Context


def run(context: Context) -> None:
    """Rank the points by the sweep's metric and link the best one's folder as `best`."""
    sweep = read_sweep(context.files)
    if sweep is None:
        raise WorkerError("this run is no sweep", where=str(context.files.sweep))
    ranked = scores(context.files, sweep)
    best = ranked[0]
    if best.value is None:
        raise WorkerError(
            f"none of {len(ranked)} points has a finite {sweep.metric}",
            where="sweep.metric",
            hint=f"swiftlaunch sweep {context.plan.run_id} shows how each of them ended",
        )
    link = context.files.best
    beside = link.with_name(".best.part")
    beside.unlink(missing_ok=True)
    beside.symlink_to(point_files(context.files, best.point).root.relative_to(context.files.root))
    os.replace(beside, link)
    with_value = sum(score.value is not None for score in ranked)
    context.finish(
        metrics={"point": best.point.number, "value": best.value, "points": len(ranked), "with_value": with_value},
        artifacts={"metric": sweep.metric, "goal": sweep.goal, "values": best.point.values},
    )
