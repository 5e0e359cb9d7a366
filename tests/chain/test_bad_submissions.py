"""Bad recipes handed to the real `submit`: one clear report, exit code 2, nothing created, nothing executed."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from launcher import assets

pytestmark = pytest.mark.local

HOSTILE = [
    '"; touch stray; "',
    "$(touch stray)",
    "`touch stray`",
    "a'b\\nc",
    "a b",
    "é\\u202ex",
    "a\\tb",
    "x|touch stray",
]

# what is replaced, by what, and words that the report must hold
CASES = [
    ("steps = 4", "steps = 'four'", "train.steps"),
    ("steps = 4", "steps = 0", "at least 1"),
    ("steps = 4", "stesp = 4", "did you mean"),
    ("[train.layout]", "[train.layuot]", "did you mean"),
    ("learning_rate = 1e-4", "learning_rate = -1.0", "train.learning_rate"),
    ("learning_rate = 1e-4", "learning_rate = ", "recipe.toml:14"),
    ("pipeline = 2", "pipeline = 3", "does not divide the model's 4 layers"),
    ("pipeline = 2", "tensor = 2", "does not divide the model's 3 KV heads"),
    ("pipeline = 2", "expert = 2", "no experts"),
    ("pipeline = 2", "pipeline = 4", "cannot be divided"),
    ("pipeline = 2", "sequence_parallel = true", "needs tensor > 1"),
    ("global_batch_size = 4", "global_batch_size = 5", "not divisible"),
    ("group_size = 32", "group_size = 128", "group_size"),
    ('method = "gptq"', 'method = "int3"', "quantize.method"),
    ('prompt = "hello"', 'engine = "sglang"', "serve.engine"),
    ('prompt = "hello"', 'engine = "vllm"', "dies on the first request"),
    ('prompt = "hello"', "port = 70000", "serve.port"),
    ("steps = 4", 'steps = 4\nmethod = "grpo"', "train.method"),
    ("steps = 4", 'steps = 4\nmethod = "dpo"', "has no columns for prompt and chosen and rejected"),
    ("steps = 4", 'steps = 4\nmethod = "orpo"\npreference = { gamma = 1.0 }', "train.preference.gamma"),
    ("steps = 4", 'steps = 4\nengine = "deepspeed"', "train.layout.pipeline"),
    ("steps = 4", 'steps = 4\ntuner = "qlora"', "train.tuner"),
    ("tasks_per_node = 2", "tasks_per_node = 2\nnodes = 64", "resources.train.nodes"),
    ("tasks_per_node = 2", "tasks_per_node = 2\ngpus_per_node = 8", "gpus_per_node"),
    ('memory = "4G"', 'memory = "lots"', "resources.train.memory"),
    ('memory = "4G"', 'memory = "900G"', "memory"),
    ('memory = "4G"', 'time_limit = "soon"', "resources.train.time_limit"),
    ('path = "tiny"', 'path = "absent"', "absent"),
    ('path = "tiny"', 'name = "smollm2-135m-instrct"', "smollm2-135m-instruct"),
    ('path = "tiny"', 'path = "tiny"\nname = "x"', "exclude each other"),
    ('["rows.jsonl"]', '["missing.jsonl"]', "matches no file"),
    ('["rows.jsonl"]', '["bad.jsonl"]', "bad.jsonl:2"),
    ('source = "files"', 'source = "reasoning-gym"\ntask = "chain_summ"', "chain_sum"),
    ("[evaluate]", '[env]\nvariables = { HF_TOKEN = "x" }\n[evaluate]', "secrets"),
    ("[evaluate]", '[env]\nsecrets = ["NOT_SET_ANYWHERE"]\n[evaluate]', "NOT_SET_ANYWHERE"),
    ('name = "fine"', 'name = "fine"\nextends = "recipe.toml"', "extends"),
    ('name = "fine"', 'name = "fine"\nextends = "nothing.toml"', "nothing.toml"),
    *[('name = "fine"', f'name = "{text}"', "name") for text in (t.replace('"', '\\"') for t in HOSTILE)],
    *[
        ('memory = "4G"', f'partition = "{text}"', "resources.train.partition")
        for text in (t.replace('"', '\\"') for t in HOSTILE)
    ],
]


def test_the_good_recipe_is_planned(user: Any) -> None:
    finished = user.swiftlaunch("plan", "recipe.toml", "--site", "local", "--json")
    assert finished.returncode == 0, finished.stderr
    stages = [stage["name"] for stage in json.loads(finished.stdout)["stages"]]
    assert stages == ["baseline", "train", "export", "evaluate", "quantize", "evaluate-quantized", "serve"]


@pytest.mark.parametrize(("old", "new", "expected"), CASES, ids=lambda text: re.sub(r"\W+", "-", text)[:40])
def test_one_report_and_nothing_else(user: Any, old: str, new: str, expected: str) -> None:
    good = (user.folder / "recipe.toml").read_text()
    assert old in good
    user.write(good.replace(old, new, 1))
    before = user.everything()
    finished = user.swiftlaunch("submit", "recipe.toml", "--site", "local")
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert finished.stdout == ""
    assert re.search(r"^error: ", finished.stderr, re.MULTILINE)
    assert "Traceback" not in finished.stderr
    assert expected in finished.stderr
    assert user.everything() == before


def test_faults_of_the_plan_name_the_line(user: Any) -> None:
    user.write((user.folder / "recipe.toml").read_text().replace("pipeline = 2", "pipeline = 3"))
    finished = user.swiftlaunch("plan", "recipe.toml", "--site", "local")
    assert "error: recipe.toml:16 train.layout.pipeline: 3 does not divide the model's 4 layers" in finished.stderr


def test_shipped_recipe_by_name(user: Any) -> None:
    finished = user.swiftlaunch("plan", "sft-smollm2-cpu", "--site", "local")
    assert "swiftlaunch models fetch smollm2-135m-instruct" in finished.stderr
    finished = user.swiftlaunch("plan", "sft-smolm2-cpu", "--site", "local")
    assert finished.returncode == 2
    assert "did you mean sft-smollm2-cpu" in finished.stderr


def test_missing_files_of_both_splits_and_the_model_in_one_report(user: Any) -> None:
    good = (user.folder / "recipe.toml").read_text()
    user.write(good.replace('"rows.jsonl"', '"no.jsonl"').replace('"eval rows.jsonl"', '"none.jsonl"'))
    for override, model in (("train.layout.pipeline=3", "pipeline: 3"), ("model.path=/absent", "no such folder")):
        finished = user.swiftlaunch("plan", "recipe.toml", "--site", "local", "--set", override)
        assert finished.returncode == 2
        for words in ("recipe.toml:7 data.train[0]", "recipe.toml:8 data.evaluation[0]", model):
            assert finished.stderr.count(words) == 1, finished.stderr


def test_what_to_do_about_a_missing_model_is_about_the_site_in_use(user: Any) -> None:
    site = user.folder / "my site.toml"
    site.write_text((assets.folder("site") / "local.toml").read_text().replace('"local"', '"mine"', 1))
    finished = user.swiftlaunch("plan", "sft-smollm2-cpu", "--site", "my site.toml")
    assert f"hint: run: swiftlaunch models fetch smollm2-135m-instruct --site '{site}'" in finished.stderr
    finished = user.swiftlaunch("plan", "sft-smollm2-cpu", "--set", "model.name=qwen3-8b")
    assert "models/qwen3-8b" in finished.stderr  # nothing can fetch it: where to put it is said instead
    assert "models fetch" not in finished.stderr


def test_commands_that_take_a_recipe_take_a_shipped_name(user: Any) -> None:
    finished = user.swiftlaunch("data", "sft-smollm2-cpu", "--site", "local")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert "chain_sum" in finished.stdout
    finished = user.swiftlaunch("diff", "sft-smollm2-cpu", "sft-smollm2-cpu", "--site", "local")
    assert "model.name: smollm2-135m-instruct is not on site local" in finished.stderr
    assert "no run" not in finished.stderr


def test_interpreters_that_are_not_there(user: Any) -> None:
    text = (assets.folder("site") / "local.toml").read_text().replace('"local"', '"here"', 1)
    (user.folder / "here.toml").write_text(text.replace('kind = "locked"', 'kind = "venv", python = "/none/python"'))
    before = user.everything()
    finished = user.swiftlaunch("submit", "recipe.toml", "--site", "here.toml")
    assert finished.returncode == 2
    for role in ("train", "transformers", "gptq"):
        assert f"here.toml: environments.{role}.python: no interpreter at /none/python" in finished.stderr
    assert user.everything() == before


def test_all_faults_in_one_report(user: Any) -> None:
    good = (user.folder / "recipe.toml").read_text()
    user.write(good.replace("steps = 4", "stesp = 4").replace("limit = 2", "limit = 0").replace('"gptq"', '"gtpq"'))
    finished = user.swiftlaunch("plan", "recipe.toml")
    assert finished.returncode == 2
    for where in ("train.stesp", "evaluate.limit", "quantize.method"):
        assert finished.stderr.count(where) == 1, finished.stderr
