"""`swiftlaunch diff`."""

from __future__ import annotations

import difflib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launcher.cli.parameters import prepared, registry, set_option, site_option
from launcher.errors import UserError

if TYPE_CHECKING:
    from launcher.plan import Plan
    from launcher.registry import RunRow

# What differs between any two launches, and says nothing about what they do.
_NAMES_OF_ONE_LAUNCH = ("run_id", "run_dir", "recipe_path", "git_sha")


@click.command(name="diff")
@click.argument("before", metavar="RUN|RECIPE")
@click.argument("after", metavar="RECIPE", type=click.Path(path_type=Path))
@set_option
@site_option
def command(before: str, after: Path, overrides: tuple[str, ...], site_name: str) -> int:
    """Compare a run, or a recipe, with what a recipe gives now.

    Prints a unified diff of plan.json and of the job scripts. Run ids and run folders are the same word on both
    sides, so that only real changes show. A run is compared on its own site; --set changes RECIPE alone.
    Exit code 0: no difference, 1: there are differences.

    \b
    Example:
      swiftlaunch diff latest recipe.toml
    """
    row = None if Path(before).is_file() else _run_of(before)
    if row is None:
        old = _of_recipe(Path(before), (), site_name)
    else:
        old = _of_run(row.run_dir)
        site_name = site_name or row.site
    new = _of_recipe(after, overrides, site_name)
    differs = False
    for name in dict.fromkeys([*old, *new]):
        lines = list(
            difflib.unified_diff(
                old.get(name, "").splitlines(),
                new.get(name, "").splitlines(),
                f"{before}/{name}" if name in old else "/dev/null",
                f"{after}/{name}" if name in new else "/dev/null",
                lineterm="",
            )
        )
        differs = differs or bool(lines)
        for line in lines:
            click.echo(line)
    return 1 if differs else 0


def _run_of(name: str) -> RunRow | None:
    """The run of that name, or None where only a recipe has it. Raises UserError where neither does."""
    from launcher.prepare import recipe_file

    try:
        return registry().find(name)
    except UserError:
        with suppress(UserError):
            if recipe_file(Path(name)).is_file():
                return None
        raise


def comparable(plan: Plan, scripts: dict[str, str]) -> dict[str, str]:
    """The files of a launch, `{name: text}`, with one word for its run id and one for its run folder."""

    def neutral(text: str) -> str:
        return text.replace(plan.run_dir, "RUN_DIR").replace(plan.run_id, "RUN_ID")

    data = json.loads(plan.to_json())
    for key in _NAMES_OF_ONE_LAUNCH:
        data.pop(key)
    files = {"plan.json": json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"}
    files.update({f"scripts/{stage}.sh": text for stage, text in scripts.items()})
    return {name: neutral(text) for name, text in files.items()}


def _of_run(run_dir: Path) -> dict[str, str]:
    from launcher.rundir import RunDir
    from launcher.watch import load_plan

    plan = load_plan(run_dir)
    order = [stage.name for stage in plan.stages]
    names = sorted(path.stem for path in RunDir(run_dir).script("*").parent.glob("*.sh"))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))  # of a sweep: arrays last
    scripts = {name: RunDir(run_dir).script(name).read_text(encoding="utf-8") for name in names}
    return comparable(plan, scripts)


def _of_recipe(recipe: Path, overrides: tuple[str, ...], site_name: str) -> dict[str, str]:
    ready = prepared(recipe, overrides, site_name)
    return comparable(ready.plan, ready.scripts)
