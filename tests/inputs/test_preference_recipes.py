"""[train.preference]: defaults of each method, and what does not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import InputError
from launcher.recipe import LoadedRecipe, load_recipe, starter
from launcher.recipe.preference import DEFAULTS

pytestmark = pytest.mark.unit

RECIPE = """\
name = "pairs"
[model]
name = "qwen3-0.6b"
[data]
source = "files"
train = ["pairs.jsonl"]
[train]
method = "dpo"
steps = 100
global_batch_size = 16
sequence_length = 256
learning_rate = 1e-5
"""


def load(folder: Path, text: str, *overrides: str) -> LoadedRecipe:
    path = folder / "recipe.toml"
    path.write_text(text)
    return load_recipe(path, overrides)


@pytest.mark.parametrize("method", DEFAULTS)
def test_defaults_follow_from_the_method(tmp_path: Path, method: str) -> None:
    resolved = load(tmp_path, RECIPE.replace("dpo", method)).resolved
    found = {key: value for key, value in resolved["train"]["preference"].items() if value is not None}
    wanted = dict(DEFAULTS[method])
    if "reference" in wanted:
        wanted["reference"] = "frozen-copy"
    assert found == wanted
    assert resolved["data"]["format"] == ("kto" if method == "kto" else "preference")


def test_the_reference_of_adapters_is_the_model_without_them(tmp_path: Path) -> None:
    resolved = load(tmp_path, RECIPE + 'tuner = "lora"\n[train.preference]\nbeta = 0.3\n').resolved
    assert resolved["train"]["preference"]["reference"] == "adapter-off"
    assert resolved["train"]["preference"]["beta"] == 0.3
    assert load(tmp_path, RECIPE.replace("dpo", "sft")).resolved["train"]["preference"] is None


BAD = [
    ('method = "sft"\n[train.preference]\nbeta = 0.1', "train.preference", 'has no meaning with method = "sft"'),
    ("[train.preference]\ngamma = 1.0", "train.preference.gamma", "is not read by dpo: it has no target margin"),
    (
        'method = "orpo"\n[train.preference]\nreference = "frozen-copy"',
        "train.preference.reference",
        "is not read by orpo: it has no reference model",
    ),
    (
        'method = "orpo"\n[train.preference]\nlabel_smoothing = 0.1',
        "train.preference.label_smoothing",
        "is not read by orpo: it is for dpo, simpo, cpo",
    ),
    (
        'method = "cpo"\n[train.preference]\ndesirable_weight = 2.0',
        "train.preference.desirable_weight",
        "compares two answers",
    ),
    ('method = "rm"\n[train.preference]\nbeta = 0.1', "train.preference.beta", "is not read by rm"),
    ("[train.preference]\nlabel_smoothing = 0.5", "train.preference.label_smoothing", "0.5"),
    ("[train.preference]\nbeta = 0.0", "train.preference.beta", "0"),
    (
        '[train.preference]\nloss = "ipo"\nlabel_smoothing = 0.1',
        "train.preference.label_smoothing",
        'has no meaning with loss = "ipo"',
    ),
    ('[train.preference]\nreference = "adapter-off"', "train.preference.reference", "no adapter to switch off"),
    ('tuner = "lora"\n[train.preference]\nreference = "frozen-copy"', "train.preference.reference", "costs memory"),
    (
        'method = "kto"\n[train.preference]\ndesirable_weight = 0.0\nundesirable_weight = 0.0',
        "train.preference.desirable_weight",
        "nothing would be learnt",
    ),
    ("packing = true", "train.packing", "is for cpt and sft"),
    ("validation.every_steps = 9", "data.evaluation", "is required"),
    ('method = "cpt"\nvalidation.every_steps = 9', "data.evaluation", "is required"),
    ('method = "rm"\n[evaluate]', "evaluate", "a reward model has scores for outputs"),
    ('method = "rm"\n[serve]', "serve", "a reward model has scores for outputs"),
]


@pytest.mark.parametrize(("text", "where", "message"), BAD, ids=[f"{where}: {message}" for _, where, message in BAD])
def test_what_does_not_go_together(tmp_path: Path, text: str, where: str, message: str) -> None:
    recipe = RECIPE if "method" not in text else RECIPE.replace('method = "dpo"\n', "")
    with pytest.raises(InputError) as caught:
        load(tmp_path, recipe + text + "\n")
    found = [fault for fault in caught.value.faults if fault.where.split()[-1] == where]
    assert found, caught.value.faults
    assert message in found[0].message


@pytest.mark.parametrize(
    ("data", "where", "message"),
    [
        (["data.format=messages"], "data.format", 'dpo needs rows of the format "preference"'),
        (["data.format=kto"], "data.format", 'dpo needs rows of the format "preference"'),
        (["train.method=kto", "data.format=preference"], "data.format", 'kto needs rows of the format "kto"'),
        (["train.method=sft", "data.format=preference"], "data.format", 'has no meaning with method = "sft"'),
        (["data.format=preference", "data.columns.text=t"], "data.columns.text", "has no meaning with format"),
    ],
)
def test_rows_are_of_the_kind_that_the_method_learns_from(
    tmp_path: Path, data: list[str], where: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, RECIPE, *data)
    assert any(where in fault.where and message in fault.message for fault in caught.value.faults), caught.value


def test_generated_problems_have_no_second_answer(tmp_path: Path) -> None:
    generated = RECIPE.replace(
        'source = "files"\ntrain = ["pairs.jsonl"]', 'source = "reasoning-gym"\ntask = "chain_sum"'
    )
    with pytest.raises(InputError, match="dpo learns from pairs of answers, which reasoning-gym does not make"):
        load(tmp_path, generated)


@pytest.mark.parametrize("method", DEFAULTS)
def test_starters_load(tmp_path: Path, method: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(starter(method))
    assert load_recipe(path).recipe.train is not None
