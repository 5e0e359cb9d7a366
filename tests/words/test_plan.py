from __future__ import annotations

import json
from dataclasses import replace

import pytest

from launcher.plan import Environment, Estimate, Group, Plan, Resources, Stage, from_json

pytestmark = pytest.mark.unit


def plan() -> Plan:
    environment = Environment(
        role="train",
        kind="pyxis",
        python="python3",
        modules=("cuda/12.8",),
        image="/images/a b.sqsh",
        mounts=("/data:/data",),
        variables=(("A", "1"), ("B", 'zwölf "quoted" $(x)')),
        lock="train-cpu.txt:abc",
    )
    resources = Resources(2, 4, 8, 4, 4096, 90, partition="gpu", extra=("--exclusive",))
    train = Stage(
        name="train",
        worker="train",
        resources=resources,
        environment=environment,
        options={"train": {"steps": 3, "rate": 1e-3, "none": None}},
        layout="TP2 DP4",
        max_attempts=3,
        estimate=Estimate(1024, 12.5, 0.25, "a guess"),
    )
    export = Stage("export", "export", resources, environment, {}, depends_on=("train",))
    return Plan(
        run_id="demo-1",
        name="demo",
        run_dir="/runs/demo-1",
        site="here",
        scheduler="slurm",
        user="user",
        version="0.1.0",
        git_sha="",
        recipe_path="demo.toml",
        recipe={"name": "demo"},
        model={"layers": 30},
        data_hash="0123",
        stages=(train, export),
        secrets=("HF_TOKEN",),
        warnings=("careful",),
    )


def test_round_trip_gives_an_equal_plan_and_the_same_bytes() -> None:
    text = plan().to_json()
    again = from_json(text)
    assert again == plan()
    assert again.to_json() == text


def test_another_schema_is_refused() -> None:
    data = json.loads(plan().to_json())
    data["schema"] = 2
    with pytest.raises(ValueError, match="schema 2 is not 1"):
        from_json(json.dumps(data))


def test_a_stage_by_name() -> None:
    assert plan().stage("export").depends_on == ("train",)
    with pytest.raises(KeyError):
        plan().stage("serve")


def test_ranks() -> None:
    assert plan().stage("train").resources.world_size == 8


def test_groups_of_a_stage() -> None:
    """They are read back; a stage without groups says nothing of them, as plans before there were groups."""
    train = plan().stage("train")
    group = Group("sample", "sample", train.resources, train.environment, {"n": 1}, 2, essential=False, max_restarts=3)
    grouped = replace(plan(), stages=(replace(train, groups=(replace(group, name="train"), group), het=True),))
    assert from_json(grouped.to_json()) == grouped
    assert grouped.stage("train").group("sample") == group
    with pytest.raises(KeyError):
        grouped.stage("train").group("learn")
    assert not {"groups", "het"} & json.loads(plan().to_json())["stages"][0].keys()
