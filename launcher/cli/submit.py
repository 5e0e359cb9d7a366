"""`swiftlaunch submit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.following import submit_prepared
from launcher.cli.parameters import find_run, follow_option, json_option, prepared, set_option, site_option
from launcher.cli.resume import resume_run

if TYPE_CHECKING:
    from launcher.registry import RunRow


@click.command(name="submit")
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.option(
    "--resume",
    "run",
    metavar="RUN",
    callback=find_run,
    help="No recipe: complete the submission of this run, as `swiftlaunch resume RUN` does.",
)
@set_option
@site_option
@follow_option
@json_option
def command(
    recipe: Path | None, run: RunRow | None, overrides: tuple[str, ...], site_name: str, follow: bool, as_json: bool
) -> int:
    """Submit a recipe: a job for every stage.

    Each job waits for the stages before it. Shows the plan, writes the run folder, submits, and prints the run id.
    From then on the run needs nobody: it finishes with this terminal closed. With --follow the stages are shown as
    they go, and at the end the results.

    A submission that was cut (a lost connection, a killed shell, a controller that does not answer) is completed with
    --resume: stages that were submitted are kept, and none is submitted twice.

    \b
    Example:
      swiftlaunch submit recipe.toml --site local --follow
      swiftlaunch submit --resume latest
    """
    if run is not None:
        if recipe is not None or overrides or site_name:
            raise click.UsageError("--resume takes a run as it was planned: no recipe, no --set, no --site")
        return resume_run(run, follow=follow, as_json=as_json)
    if recipe is None:
        raise click.UsageError("Missing argument 'RECIPE' (or --resume RUN).")
    ready = prepared(recipe, overrides, site_name)

    from launcher.units import counted
    from launcher.view.console import message_console
    from launcher.view.plan_table import show_plan
    from launcher.view.sweep_table import show_sweep_plan

    everything = ready.sweep.everything if ready.sweep else ready.plan.stages
    show_plan(ready.plan, message_console(), why_site=ready.why_site, everything=everything)
    show_sweep_plan(ready, message_console())
    run_id = ready.plan.run_id
    submitted = counted(len(everything), "stage")
    then = f"submitted {submitted}; `swiftlaunch status {run_id} --follow` shows how they go"
    return submit_prepared(ready, follow=follow, as_json=as_json, then=then)
