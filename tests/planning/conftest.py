"""Plans of recipes written in the tests, on sites that differ in one thing from a known one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import Fault
from launcher.models import FoundModel, ModelFacts, known_models
from launcher.plan import Plan
from launcher.planner import Identity, make_plan
from launcher.recipe import load_recipe
from launcher.sites import Node, Partition, Site, SiteEnvironment
from launcher.sites.site import ROLES

IDENTITY = Identity("run-1", "user", "0123abc", "recipe.toml", "0.1.0")
LOCKS = dict.fromkeys(ROLES, "0" * 12)

LOCAL = Site(
    name="local",
    path="local.toml",
    scheduler="local",
    runs_dir="/home/user/runs",
    models_dir="/home/user/models",
    environments_dir="/home/user/environments",
    node=Node(cpus=2, memory_mib=16384, count=4),
    environments={role: SiteEnvironment(role, "locked") for role in ROLES},
)
GPUS = Site(
    name="centre",
    path="centre.toml",
    scheduler="slurm",
    runs_dir="/scratch/runs",
    models_dir="/scratch/models",
    environments_dir="/scratch/environments",
    node=Node(cpus=96, memory_mib=1_900_000, count=64, gpus=8, gpu_type="h100", gpu_memory_mib=81920),
    partitions=(
        Partition("gpu", time_limit_minutes=1440, default=True),
        Partition("cpu", time_limit_minutes=2880, gpus=0),
    ),
    environments={role: SiteEnvironment(role, "venv", f"/envs/{role}/bin/python") for role in ROLES},
)

DATA = '[data]\nsource = "reasoning-gym"\ntask = "chain_sum"\n'
TRAIN = "[train]\nsteps = 10\nglobal_batch_size = 16\nsequence_length = 128\nlearning_rate = 1e-3\n"
ADAPTERS = TRAIN + 'tuner = "lora"\nprecision = "fp32"\n'


def facts(name: str) -> ModelFacts:
    return next(known for known in known_models() if known.name == name)


Planned = Callable[..., Plan]


@pytest.fixture
def planned(tmp_path: Path) -> Planned:
    """plan = planned("[serve]", site=GPUS, model="qwen3-8b"): the recipe's text after its name and model."""

    def plan(
        text: str,
        *,
        site: Site = LOCAL,
        model: str = "smollm2-135m-instruct",
        fetched: bool = True,
        data_faults: tuple[Fault, ...] = (),
        **changes: Any,
    ) -> Plan:
        path = tmp_path / "recipe.toml"
        path.write_text(f'name = "test"\nmodel.name = "{model}"\n{text}', encoding="utf-8")
        loaded = load_recipe(path)
        arguments: dict[str, Any] = {"identity": IDENTITY, "lock_hashes": LOCKS, "data_hash": "abc", **changes}
        folder = Path(site.models_dir) / model
        return make_plan(
            loaded.recipe,
            resolved=loaded.resolved,
            site=site,
            model=FoundModel(facts(model), folder if fetched else None, "models_dir" if fetched else "table"),
            data_faults=data_faults,
            **arguments,
        )

    return plan
