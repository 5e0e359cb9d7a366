"""Recipes that must load: shipped ones, extremes, what extends and --set work in, the starter, the schema."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.errors import InputError, UserError
from launcher.models import find_model
from launcher.recipe import load_recipe, reasoning_gym_tasks, recipe_schema, starter
from launcher.recipe.positions import key_lines
from launcher.recipe.source import parse_override
from launcher.topology import Layout, layout_faults

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "recipes").glob("*.toml"))
SMALL = "name = 'x'\n[model]\nname = 'm'\n"


def write(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    return jsonschema.Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes(path: Path, schema: jsonschema.Draft202012Validator) -> None:
    """Each loads, is named after its file, fits the schema, uses a known model and a layout that can run."""
    loaded = load_recipe(path)
    assert loaded.recipe.name == path.stem
    assert loaded.text == path.read_text()
    schema.validate(tomllib.loads(loaded.text))
    facts = find_model(loaded.recipe.model.name or "", Path("/nowhere"), Path("/nowhere")).facts
    if (train := loaded.recipe.train) is not None:
        need = loaded.recipe.resources.train
        faults = layout_faults(
            Layout(**train.layout.model_dump()),
            facts.shape,
            world_size=(need.nodes or loaded.recipe.resources.default.nodes or 1) * (need.tasks_per_node or 1),
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            sequence_length=train.sequence_length,
        )
        assert faults == []
        assert facts.megatron
        assert train.sequence_length <= facts.max_positions


def test_there_are_recipes_for_each_kind_of_use() -> None:
    recipes = [load_recipe(path).recipe for path in SHIPPED]
    assert {recipe.train.method for recipe in recipes if recipe.train} == {"sft", "cpt", "dpo"}
    assert {recipe.train.tuner for recipe in recipes if recipe.train} == {"full", "lora", "qlora"}
    assert any(recipe.train is None for recipe in recipes)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_resolved_recipe_is_a_recipe(path: Path, tmp_path: Path) -> None:
    """All defaults are written, it is JSON, and loading it again gives the same."""
    resolved = load_recipe(path).resolved
    assert json.loads(json.dumps(resolved)) == resolved
    text = "\n".join(_toml(resolved))
    assert load_recipe(write(tmp_path, text)).resolved == resolved


def _toml(table: dict[str, Any], at: str = "") -> list[str]:
    """TOML of a table of JSON values; None is left out."""
    lines = [f"[{at}]"] if at else []
    # a key of a sweep has dots in its name
    lines += [
        f"{json.dumps(k)} = {json.dumps(v)}" for k, v in table.items() if v is not None and not isinstance(v, dict)
    ]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += _toml(value, f"{at}.{key}" if at else key)
    return lines


def test_defaults_are_written_out(tmp_path: Path) -> None:
    resolved = load_recipe(write(tmp_path, SMALL + "[serve]\n[quantize]\nmethod = 'fp8'\n")).resolved
    assert resolved["serve"]["engine"] == "auto"
    assert resolved["serve"]["port"] == 0
    assert resolved["quantize"] == {
        "method": "fp8",
        "bits": 8,
        "group_size": None,
        "calibration_samples": 0,
        "evaluate": True,
    }
    assert resolved["train"] is None
    assert resolved["tracking"] == {
        "tensorboard": True,
        "wandb": False,
        "wandb_mode": None,
        "mlflow": False,
        "mlflow_uri": None,
        "project": None,
    }


EXTREMES = [
    "name = '" + "n" * 64 + "'\n[model]\nname = 'm'\n",
    "name = '9'\n[model]\nname = 'Org-1/Model_2.5'\nrevision = 'refs/pr/12'\n",
    SMALL + "[env.variables]\nTOKENIZERS_PARALLELISM = 'false'\nMAX_TOKENS = ''\nKEYBOARD = '$HOME \"x\"'\n",
    SMALL + "[env]\nsecrets = ['HF_TOKEN', 'WANDB_API_KEY']\n",
    SMALL + "[resources.train]\nmemory = 1\ntime_limit = '45s'\nconstraint = '[rack1|rack2]&a100*2'\n",
    SMALL + "[resources.train]\nmemory = '1.5T'\ntime_limit = '7-00:00:00'\npartition = 'gpu,long_2'\n",
    SMALL + "[resources.serve]\nextra = ['--exclusive', '--reservation=a b', '--gres=gpu:a100:4']\ngpus_per_node = 0\n",
    SMALL + '[serve]\nprompt = """two\nlines\tand 模型"""\nport = 65535\nhost = \'::1\'\nextra_arguments = []\n',
    SMALL
    + "[tracking]\nwandb = true\nproject = 'p'\n[data]\nsource = 'reasoning-gym'\ntask = 'chain_sum'\n"
    + "[train]\nsteps = 1\nglobal_batch_size = 1\nsequence_length = 8\nlearning_rate = 1\n",
    SMALL + "[quantize]\nmethod = 'int8'\ncalibration_samples = 0\n",
    "\ufeff" + SMALL,
    SMALL.replace("\n", "\r\n"),
]


@pytest.mark.parametrize("text", EXTREMES)
def test_extremes(tmp_path: Path, text: str, schema: jsonschema.Draft202012Validator) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode())
    load_recipe(path)
    schema.validate(tomllib.loads(text.replace("\ufeff", "")))


TRAIN = """\
[data]
source = "files"
train = ["data/a b*.jsonl", "~/x.jsonl"]
evaluation = ["/abs/e.jsonl"]
[train]
steps = 1
global_batch_size = 1
sequence_length = 8
learning_rate = 1
"""


@pytest.mark.parametrize("key", ["engine", "method", "tuner"])
def test_words_are_legal_whatever_the_planner_says(tmp_path: Path, key: str) -> None:
    words = {
        "engine": ["megatron", "deepspeed", "fsdp"],
        "method": ["cpt", "sft", "dpo", "kto", "simpo", "orpo", "cpo", "rm", "grpo"],
        "tuner": ["full", "lora", "rslora", "dora", "pissa", "qlora"],
    }
    for word in words[key]:
        engine = 'engine = "fsdp"\n' if word == "qlora" else ""
        text = SMALL + TRAIN + engine + f'{key} = "{word}"\n'
        assert load_recipe(write(tmp_path, text)).resolved["train"][key] == word


def test_paths_start_at_the_file_that_they_are_written_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    write(tmp_path, "[model]\npath = '../models/größe'\n" + TRAIN, "base dir/base.toml")
    child = write(tmp_path, "name = 'x'\nextends = '../base dir/base.toml'\n", "sub/child.toml")
    loaded = load_recipe(child)
    assert loaded.resolved["model"]["path"] == str(tmp_path / "models" / "größe")
    assert loaded.resolved["data"]["train"] == [f"{tmp_path}/base dir/data/a b*.jsonl", "/home/somebody/x.jsonl"]
    assert loaded.resolved["data"]["evaluation"] == ["/abs/e.jsonl"]
    loaded = load_recipe(child, ["model.path=m"])
    assert loaded.resolved["model"]["path"] == str(tmp_path / "sub" / "m")
    monkeypatch.chdir(tmp_path / "sub")
    assert load_recipe(Path("child.toml")).resolved == load_recipe(child).resolved


def test_data_files(tmp_path: Path) -> None:
    text = (
        SMALL
        + "[data]\nsource = 'files'\ntrain = ['b*.jsonl',\n 'a [1].jsonl', '**/*.csv']\nevaluation = ['no-*',\n'd']\n"
    )
    for name in ("b2.jsonl", "b1.jsonl", "a [1].jsonl", "c/d/e.csv", "d/x"):
        write(tmp_path, "", name)
    loaded = load_recipe(write(tmp_path, text))
    names = [str(path.relative_to(tmp_path)) for path in loaded.data_files("train")]
    assert names == ["b1.jsonl", "b2.jsonl", "a [1].jsonl", "c/d/e.csv"]
    with pytest.raises(InputError) as caught:
        loaded.data_files("evaluation")
    assert [fault.where for fault in caught.value.faults] == [
        f"{tmp_path}/recipe.toml:8 data.evaluation[0]",
        f"{tmp_path}/recipe.toml:9 data.evaluation[1]",
    ]


def test_extends_chains_and_replaces_lists(tmp_path: Path) -> None:
    write(
        tmp_path, SMALL + "[env]\nsecrets = ['A', 'B']\nvariables = { X = '1', Y = '2' }\n[serve]\nport = 1\n", "a.toml"
    )
    write(
        tmp_path,
        "extends = 'a.toml'\n[env]\nsecrets = ['C']\nvariables.Y = '3'\n[serve]\nmax_new_tokens = 9\n",
        "b.toml",
    )
    loaded = load_recipe(write(tmp_path, "extends = 'b.toml'\nname = 'y'\n", "c.toml"), ["serve.port=2"])
    assert loaded.recipe.name == "y"
    assert loaded.resolved["env"] == {"secrets": ["C"], "variables": {"X": "1", "Y": "3"}}
    assert (loaded.recipe.serve.port, loaded.recipe.serve.max_new_tokens) == (2, 9)  # type: ignore[union-attr]
    assert loaded.where("serve", "max_new_tokens") == f"{tmp_path}/b.toml:6 serve.max_new_tokens"
    assert loaded.where("serve", "port") == "--set serve.port"
    assert loaded.text == "extends = 'b.toml'\nname = 'y'\n"


def test_a_choice_displaces_what_belonged_to_the_other(tmp_path: Path) -> None:
    """The demo recipe can be changed with --set alone."""
    demo = ROOT / "recipes" / "sft-smollm2-cpu.toml"

    def resolved(*overrides: str) -> dict[str, Any]:
        return load_recipe(demo, overrides).resolved

    assert resolved("train.epochs=2")["train"]["steps"] is None
    model = {"name": None, "path": "/m", "revision": None, "chat_template": None}
    assert resolved("model.path=/m")["model"] == model
    assert resolved("train.tuner=full")["train"]["lora"]["rank"] == 16
    assert resolved("train.tuner=dora")["train"]["lora"]["alpha"] == 32
    assert resolved("quantize.method=fp8")["quantize"]["bits"] == 8
    files = resolved("data.source=files", "data.train=['a.csv']", "data.evaluation=['b.csv']")["data"]
    assert files["task"] is None
    wsd = resolved("train.schedule=wsd", "train.decay_steps=6")["train"]
    assert wsd["decay_steps"] == 6


SWEEPS = [
    'parameters = { "train.learning_rate" = [1e-4, 3e-4], "train.lora.rank" = [8, 16] }',
    'parameters = { "train.epochs" = [1, 2], "model.path" = ["/a", "/b"], "train.tuner" = ["full", "dora"] }',
    'parameters = { "data.task_options.min_terms" = [2, 3], "env.variables.NAME" = ["x"], "train.lora.alpha" = [1] }',
    'parameters = { "resources.train.memory" = ["6G", 8192], "quantize.bits" = [4, 8] }\nmethod = "list"',
    'parameters = { "train.steps" = { min = 10, max = 99 }, "train.seed" = [1, 2, 3] }\nmethod = "random"\nsamples = 4',
    'parameters."train.learning_rate" = { min = 1e-5, max = 1e-2, scale = "log" }\nmethod = "random"\nsamples = 4',
]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_sweeps(tmp_path: Path, sweep: str) -> None:
    text = (ROOT / "recipes" / "sft-smollm2-cpu.toml").read_text() + f"\n[sweep]\n{sweep}\n"
    resolved = load_recipe(write(tmp_path, text)).resolved
    assert resolved["sweep"]["parameters"]
    assert resolved["train"]["steps"] == 60


@pytest.mark.parametrize(
    ("word", "loc", "value"),
    [
        ("train.steps=60", ("train", "steps"), 60),
        ("train.learning_rate=1e-3", ("train", "learning_rate"), 1e-3),
        ("name=run-2", ("name",), "run-2"),
        ('name="run-2"', ("name",), "run-2"),
        ("serve.prompt=a = b", ("serve", "prompt"), "a = b"),
        ("serve.prompt=", ("serve", "prompt"), ""),
        ("name=2026-01-01", ("name",), "2026-01-01"),
        ("x=1\ny = 2", ("x",), "1\ny = 2"),
        ("data.train=['a', 'b']", ("data", "train"), ["a", "b"]),
        ("data.task_options={min_terms=2}", ("data", "task_options"), {"min_terms": 2}),
        ('sweep.parameters."train.steps"=[1]', ("sweep", "parameters", "train.steps"), [1]),
        (" train . steps =5", ("train", "steps"), 5),
        ("evaluate.baseline=false", ("evaluate", "baseline"), False),
    ],
)
def test_override_words(word: str, loc: tuple[str, ...], value: object) -> None:
    assert parse_override(word) == (loc, value)


@given(st.text())
@example("a=[" + "[" * 3000)
@example("a=\x00")
def test_any_override_is_an_assignment_or_a_value_error(word: str) -> None:
    try:
        loc, _ = parse_override(word)
    except ValueError:
        return
    assert loc
    assert "=" in word


_values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)  # JSON has no word for them
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(_values)
def test_a_value_written_as_toml_comes_back(value: object) -> None:
    text = json.dumps(value, ensure_ascii=True).replace("\\u007f", "\x7f")
    if "\\ud" in text or "\x7f" in text or "\\/" in text:  # JSON writes astral characters as pairs, TOML does not
        text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    _, found = parse_override(f"a.b={text}")
    assert found == value


DOCUMENT = """\
# comment with [brackets] = "x"
top = 1
"quoted key".'literal'.bare = { a = 1, b = [2, { c = 3 }] }
text = \"\"\"
[not.a.table]
x = 1 \\" \"\"\" # after
raw = '''
y = '''''
list = [
  "one", # first ]
  'two',
  [3.0, 1979-05-27T07:32:00Z],
]
[a.b]
c = "#"
[[t]]
k = 1
[[t]]
k = 2
[t.sub]
z = true
[[t.more]]
[ a . "d e" ]
f = '\\'
"""


def flat(value: Any, at: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {loc for key, item in items for loc in {(*at, key)} | flat(item, (*at, key))}


@pytest.mark.parametrize("text", [DOCUMENT, "", "a=1", *(path.read_text() for path in SHIPPED)])
def test_every_key_has_a_line(text: str) -> None:
    assert set(key_lines(text)) == flat(tomllib.loads(text))


def test_lines_are_right() -> None:
    lines = key_lines(DOCUMENT)
    assert lines["top",] == 2
    assert lines["quoted key", "literal", "bare", "b", 1, "c"] == 3
    assert lines["raw",] == 7
    assert lines["list", 1] == 11
    assert lines["a", "b", "c"] == 15
    assert lines["t", 1, "k"] == 19
    assert lines["a", "d e", "f"] == 24


@pytest.mark.parametrize("method", ["sft", "cpt"])
def test_the_starter_loads(tmp_path: Path, method: str, schema: jsonschema.Draft202012Validator) -> None:
    text = starter(method)
    loaded = load_recipe(write(tmp_path, text))
    schema.validate(tomllib.loads(text))
    assert loaded.recipe.train is not None
    assert loaded.recipe.train.method == method
    keys = [line for line in text.splitlines() if " = " in line and not line.startswith("#")]
    assert all(" # " in line for line in keys)


def test_a_starter_of_a_method_that_has_none() -> None:
    with pytest.raises(UserError, match="no starter") as caught:
        starter("ppo")
    assert caught.value.exit_code == 2


def test_every_key_of_the_schema_is_described() -> None:
    whole = recipe_schema()
    for name, section in {"recipe": whole, **whole["$defs"]}.items():
        assert section.get("description"), name
        for key, value in section["properties"].items():
            assert value.get("description"), f"{name}.{key}"


def test_the_schema_refuses_what_the_loader_refuses(schema: jsonschema.Draft202012Validator) -> None:
    good = {"name": "x", "model": {"name": "m"}}
    schema.validate(good)
    schema.validate({"extends": "base.toml"})
    for bad in (
        {"name": "x"},
        {**good, "stepz": 1},
        {**good, "name": "a b"},
        {**good, "serve": {"port": -1}},
        {**good, "train": {"engine": "megatorn"}},
        {**good, "resources": {"trian": {}}},
    ):
        assert not schema.is_valid(bad), bad


def test_the_shipped_schema_is_this_one() -> None:
    assert json.loads((ROOT / "docs" / "recipe.schema.json").read_text()) == recipe_schema()


def test_tasks_are_sorted_names() -> None:
    tasks = reasoning_gym_tasks()
    assert len(tasks) > 100
    assert list(tasks) == sorted(set(tasks))


def test_models_and_data_do_not_load_pydantic() -> None:
    heavy = ("pydantic", "pyarrow", "torch")
    code = f"import sys, launcher.models, launcher.dataset; print([m for m in sys.modules if m.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
