"""From functions that somebody's program hands in to what would be submitted: one job, or an array with one run."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from launcher import __version__, assets
from launcher.plan import CALL, Json
from launcher.planner import Identity, SweepPlan
from launcher.planner.call import CallRequest, plan_call
from launcher.prepare import ARRAY_SIZE, Prepared, arranged, git_sha, new_run_id
from launcher.recipe.sections import Sweep as SweepTable
from launcher.render import render
from launcher.sites import choose_site, lock_hashes
from launcher.sweep import Point


def prepare_calls(
    request: CallRequest,
    *,
    name: str,
    options: Mapping[str, Json],
    pickled: Sequence[bytes],
    at_once: int,
    site_name: str,
    home: Path,
    environ: Mapping[str, str],
) -> Prepared:
    """Check, plan and render the call of one function, or of several as a job array, `at_once` of them at a time.

    `options` are the worker's (launcher.work.call). Raises InputError with everything that the site cannot give;
    touches nothing.
    """
    shipped = assets.folder("site")
    choice = choose_site(site_name, environ=environ, hostname=socket.gethostname(), home=home, shipped=shipped)
    plan = plan_call(
        request,
        name=name,
        options=options,
        site=choice.site,
        identity=Identity(
            run_id=new_run_id(name),
            user=getpass.getuser(),
            git_sha=git_sha(Path.cwd()),
            recipe_path="",
            version=__version__,
        ),
        lock_hashes=lock_hashes(choice.site, shipped),
    )
    text = f"# No recipe: a program handed in a function through submitit.\nname = {json.dumps(name)}\n"
    alone = Prepared(plan, {}, text, choice.site, choice.why, inputs=tuple(pickled))
    if len(pickled) == 1:
        return replace(alone, scripts=render(plan, assets.folder("templates")))
    points = tuple(Point(number, 0, number, {CALL: number}) for number in range(len(pickled)))
    array = SweepPlan(
        plan=plan,
        plans=tuple(replace(plan, run_id=f"{plan.run_id}/{point.number}") for point in points),
        groups=(points,),
        table=SweepTable(parameters={}, metric=f"{CALL}.seconds", goal="minimize", concurrency=at_once),
        each=(CALL,),
        best=(),
    )
    return arranged(replace(alone, sweep=array), ARRAY_SIZE)
