"""Scripts of a stage with two groups on the shipped sites: carved, heterogeneous, on shared nodes; byte for byte."""

from __future__ import annotations

import difflib
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher import assets
from launcher.plan import Environment, Group, Plan, Resources, Stage, from_json
from launcher.planner.groups import co_schedule
from launcher.render import render
from launcher.sites import load_site, resolve_environment

pytestmark = pytest.mark.golden

SCRIPTS = Path(__file__).parent / "groups"
# site, what train asks for, what the samplers ask for otherwise, the nodes of the site
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "carved": ("example-slurm", {}, {"nodes": 3, "tasks_per_node": 1, "cpus_per_task": 96}, 0),
    "het": ("example-slurm", {}, {"partition": "cpu", "gpus_per_node": 0, "gres": "", "memory_mib": 500_000}, 0),
    "shared": ("example-slurm", {"nodes": 1, "gpus_per_node": 4, "gres": "gpu:h100:4", "memory_mib": 900_000}, {}, 1),
    "carved-apptainer": ("example-apptainer", {"gres": ""}, {"nodes": 1}, 0),
    "carved-local": (
        "local",
        {"partition": "", "gpus_per_node": 0, "gres": "", "cpus_per_task": 1, "tasks_per_node": 2, "memory_mib": 8000},
        {"tasks_per_node": 1, "memory_mib": 4000},
        0,
    ),
}
NEED = Resources(
    nodes=2,
    tasks_per_node=4,
    cpus_per_task=8,
    gpus_per_node=8,
    memory_mib=1_800_000,
    time_limit_minutes=720,
    partition="gpu",
    gres="gpu:h100:8",
)


def script_of(case: str) -> str:
    site_name, of_train, of_sample, nodes = CASES[case]
    site = load_site(assets.folder("site") / f"{site_name}.toml", Path("/home/user"))
    if nodes:
        site = replace(site, node=replace(site.node, count=nodes))
    need = replace(NEED, **of_train)
    roles = [role for role in ("train", "vllm") if role in site.environments] * 2
    environments: list[Environment] = [resolve_environment(site, role, "0" * 12) for role in roles]
    groups = [
        Group("train", "train", need, environments[0], {"steps": 1}),
        Group("sample", "sample", replace(need, **of_sample), environments[1], {}, essential=False, max_restarts=3),
    ]
    stage, faults = co_schedule(
        Stage("rl", "", need, environments[0], {}, max_attempts=5), groups, site, where="resources.rl"
    )
    assert not faults
    plan = Plan(
        run_id="rl-20260101-000000-0000",
        name="rl",
        run_dir="/runs/it's 100%/rl-20260101-000000-0000",
        site=site.name,
        scheduler=site.scheduler,
        user="user",
        version="0.0.0",
        git_sha="",
        recipe_path="rl.toml",
        recipe={},
        model={},
        data_hash="",
        stages=(stage,),
        secrets=("WANDB_API_KEY",),
    )
    assert from_json(plan.to_json()) == plan
    return render(plan, assets.folder("templates"))["rl"]


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, update_golden: bool, tmp_path: Path) -> None:
    path, text = SCRIPTS / f"{case}.sh", script_of(case)
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    golden = path.read_text(encoding="utf-8")
    if text != golden:
        lines = difflib.unified_diff(golden.splitlines(), text.splitlines(), "golden", "now", lineterm="", n=1)
        pytest.fail("\n".join([*lines][:80]) + "\nif this is meant: pytest tests/golden --update-golden", pytrace=False)
    (tmp_path / "script.sh").write_text(text)
    for command in (["bash", "-n"], ["shellcheck", "--shell=bash"]):
        checked = subprocess.run([*command, str(tmp_path / "script.sh")], capture_output=True, text=True)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
