"""Every shipped recipe on every shipped site: plan and scripts, or the refusal, byte for byte.

A file holds the warnings and the plan as JSON and then each script, under lines that name them. What follows from the
user, the clock, the commit and the machine is fixed here.
"""

from __future__ import annotations

import dataclasses
import difflib
import subprocess
from pathlib import Path

import pytest

from launcher import assets
from launcher.engines import ENGINES
from launcher.errors import SwiftlaunchError
from launcher.models import FoundModel, find_model
from launcher.plan import Plan, from_json
from launcher.planner import Identity, make_plan
from launcher.prepare import sweep_scripts, swept
from launcher.recipe import LoadedRecipe, load_recipe
from launcher.render import render
from launcher.sites import load_site
from launcher.sites.site import ROLES

pytestmark = pytest.mark.golden

HOME = Path("/home/user")
ROOT = Path("/home/user/swiftlaunch")  # where the recipes seem to lie
PLANS = Path(__file__).parent / "plans"
RECIPES = sorted(path.stem for path in assets.folder("recipes").glob("*.toml"))
SITES = sorted(path.stem for path in assets.folder("site").glob("*.toml"))


def make(recipe_name: str, site_name: str) -> tuple[Plan, dict[str, str]]:
    """The plan and its scripts. Raises SwiftlaunchError for what the site cannot run."""
    loaded = load_recipe(assets.folder("recipes") / f"{recipe_name}.toml")
    site = load_site(assets.folder("site") / f"{site_name}.toml", HOME)
    site = dataclasses.replace(site, path=f"{ROOT}/site/{site_name}.toml")
    wanted = loaded.recipe.model.name or loaded.recipe.model.path or ""
    found = find_model(wanted, Path("/nowhere"), Path("/nowhere"))

    def planned(recipe: LoadedRecipe, run_id: str) -> Plan:
        return make_plan(
            recipe.recipe,
            resolved=_moved(recipe.resolved),
            site=site,
            model=FoundModel(found.facts, Path(site.models_dir) / found.facts.name, "models_dir"),
            data_hash="0" * 64,
            data_faults=(),
            identity=Identity(
                run_id=run_id,
                user="user",
                git_sha="0" * 40,
                recipe_path=f"{ROOT}/recipes/{recipe_name}.toml",
                version="0.0.0",
            ),
            lock_hashes=dict.fromkeys(ROLES, "0" * 12),
        )

    run_id = f"{recipe_name}-20260101-000000-0000"
    if loaded.recipe.sweep is not None:
        sweep = swept(loaded, planned, run_id, site)
        placed, plans = sweep.placed(1001)
        return sweep.plan, sweep_scripts(sweep, placed, plans)
    plan = planned(loaded, run_id)
    return plan, render(plan, assets.folder("templates"))


def _moved(value: object) -> object:
    """Absolute paths below this checkout as if it lay in ROOT."""
    here = str(assets.folder("recipes").parent)
    if isinstance(value, dict):
        return {key: _moved(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_moved(item) for item in value]
    return value.replace(here, str(ROOT)) if isinstance(value, str) and value.startswith(here + "/") else value


def text_of(recipe_name: str, site_name: str) -> str:
    try:
        plan, scripts = make(recipe_name, site_name)
    except SwiftlaunchError as error:
        return f"==== refused\n{error}\n"
    parts = [f"==== plan.json\n{plan.to_json()}"]
    parts += [f"==== scripts/{name}.sh\n{script}" for name, script in scripts.items()]
    return "".join(parts)


@pytest.mark.parametrize("site_name", SITES)
@pytest.mark.parametrize("recipe_name", RECIPES)
def test_golden(recipe_name: str, site_name: str, update_golden: bool) -> None:
    path = PLANS / recipe_name / f"{site_name}.txt"
    text = text_of(recipe_name, site_name)
    if update_golden:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path} is missing: pytest tests/golden --update-golden"
    golden = path.read_text(encoding="utf-8")
    if text != golden:
        lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=1)
        pytest.fail("\n".join([*lines][:80]) + "\nif this is meant: pytest tests/golden --update-golden", pytrace=False)


def test_no_golden_file_without_its_recipe_and_site() -> None:
    expected = {PLANS / recipe / f"{site}.txt" for recipe in RECIPES for site in SITES}
    assert set(PLANS.rglob("*.txt")) == expected


@pytest.mark.parametrize("site_name", SITES)
@pytest.mark.parametrize("recipe_name", RECIPES)
def test_planning_twice_gives_the_same_bytes_and_a_plan_that_is_read_back(recipe_name: str, site_name: str) -> None:
    assert text_of(recipe_name, site_name) == text_of(recipe_name, site_name)
    try:
        plan, _ = make(recipe_name, site_name)
    except SwiftlaunchError:
        return
    assert from_json(plan.to_json()) == plan
    names = [stage.name for stage in plan.stages]
    for stage in plan.stages:
        assert set(stage.depends_on) <= set(names[: names.index(stage.name)])
        engine = stage.options.get("engine")
        assert engine in (None, *ENGINES)


def test_bash_and_shellcheck_accept_every_script(tmp_path: Path) -> None:
    files: list[Path] = []
    for recipe_name in RECIPES:
        for site_name in SITES:
            try:
                _, scripts = make(recipe_name, site_name)
            except SwiftlaunchError:
                continue
            for name, script in scripts.items():
                files.append(tmp_path / f"{recipe_name}.{site_name}.{name}.sh")
                files[-1].write_text(script, encoding="utf-8")
    assert files
    for file in files:
        checked = subprocess.run(["bash", "-n", str(file)], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")
    found = subprocess.run(["shellcheck", "--shell=bash", *map(str, files)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
