"""Recipes with mistakes: each gives one clear report, with place, reason and exit code 2."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import Fault, InputError
from launcher.recipe import load_recipe

pytestmark = pytest.mark.unit

GOOD = """\
name = "run-1"
description = "a test"
[model]
name = "qwen3-0.6b"
[data]
source = "reasoning-gym"
task = "chain_sum"
[train]
steps = 100
global_batch_size = 16
sequence_length = 256
learning_rate = 1e-4
[evaluate]
limit = 10
[quantize]
method = "gptq"
[serve]
port = 0
[resources.train]
nodes = 1
[env]
variables = { OMP_NUM_THREADS = "2" }
"""


def faults_of(folder: Path, text: str, *overrides: str) -> tuple[Fault, ...]:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    report = str(caught.value)
    # a report can be printed as it is: no control characters except its own line ends
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", report), report
    return tuple(Fault(f.where.removeprefix(f"{folder}{os.sep}"), f.message, f.hint) for f in caught.value.faults)


def test_the_good_recipe_is_good(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD)
    assert load_recipe(path).recipe.name == "run-1"


# (what is replaced, by what, where in recipe.toml the fault stands, words of its message, words of its hint)
CASES = [
    # types
    ("steps = 100", 'steps = "100"', ":9 train.steps", "must be a whole number", "without quotes"),
    ("steps = 100", "steps = 1.5", ":9 train.steps", "must be a whole number, not 1.5", ""),
    ("steps = 100", "steps = true", ":9 train.steps", "must be a whole number, not true", ""),
    ("learning_rate = 1e-4", 'learning_rate = "fast"', ":12 train.learning_rate", "must be a number", ""),
    ("learning_rate = 1e-4", "learning_rate = nan", ":12 train.learning_rate", "finite", ""),
    ("learning_rate = 1e-4", "learning_rate = inf", ":12 train.learning_rate", "", ""),
    ('name = "run-1"', "name = 7", ":1 name", "must be a text in quotes, not 7", 'write "7"'),
    ('name = "run-1"', 'name = "run-1"\ntracking = 1', ":2 tracking", "must be a table, not 1", ""),
    ("limit = 10", "baseline = 1", ":14 evaluate.baseline", "must be true or false", ""),
    ("nodes = 1", 'extra = "--exclusive"', ":20 resources.train.extra", "a list", '["--exclusive"]'),
    ('task = "chain_sum"', "task = 1979-05-27", ":7 data.task", "must be a text", ""),
    # ranges
    ("steps = 100", "steps = 0", ":9 train.steps", "must be at least 1, not 0", ""),
    ("steps = 100", "steps = -5", ":9 train.steps", "must be at least 1, not -5", ""),
    ("steps = 100", "steps = 99999999999999999999", ":9 train.steps", "must be at most 2147483647", ""),
    ("learning_rate = 1e-4", "learning_rate = 0", ":12 train.learning_rate", "must be more than 0", ""),
    ("learning_rate = 1e-4", "learning_rate = -1e-4", ":12 train.learning_rate", "more than 0", ""),
    ("port = 0", "port = 65536", ":18 serve.port", "must be at most 65535", ""),
    ("nodes = 1", "nodes = 0", ":20 resources.train.nodes", "must be at least 1", ""),
    ("nodes = 1", "gpus_per_node = -1", ":20 resources.train.gpus_per_node", "at least 0", ""),
    # words that are not in a list
    ("steps = 100", 'steps = 100\nengine = "megatorn"', ":10 train.engine", "is not one of", '"megatron"'),
    ("steps = 100", 'steps = 100\nmethod = "ppo"', ":10 train.method", "cpt, sft, dpo", ""),
    ('method = "gptq"', 'method = "awq"', ":16 quantize.method", "is not one of gptq, fp8, int8", ""),
    ('method = "gptq"', 'method = "gptq"\nbits = 5', ":17 quantize.bits", "is not one of 2, 3, 4, 8", ""),
    ('"chain_sum"', '"chain_sun"', ":7 data.task", "is not a task of reasoning-gym", "chain_sum"),
    # unknown keys
    ("steps = 100", "stepz = 100\nepochs = 1", ":9 train.stepz", "unknown key", "train.steps?"),
    ("steps = 100", "steps = 100\nrank = 8", ":10 train.rank", "unknown key", "train.lora.rank?"),
    ("[evaluate]", "[evaluation]", ":13 evaluation", "unknown key", "evaluate?"),
    ("[resources.train]", "[resources.trian]", ":19 resources.trian", "unknown key", "resources.train?"),
    ("nodes = 1", "NODES = 1", ":20 resources.train.NODES", "unknown key", "resources.train.nodes?"),
    ("nodes = 1", '"no des\\n" = 1', ':20 resources.train."no des\\n"', "unknown key", ""),
    # what belongs together
    ("steps = 100\n", "", ":8 train", "needs steps or epochs", "steps = 1000"),
    ("steps = 100", "steps = 100\nepochs = 1", ":8 train", "exclude each other", ""),
    ('name = "qwen3-0.6b"', "", ":3 model", "needs name or path", ""),
    ('[model]\nname = "qwen3-0.6b"', "", " model", "is required", ""),
    ('name = "qwen3-0.6b"', 'name = "a"\npath = "b"', ":3 model", "exclude each other", ""),
    ('name = "run-1"\n', "", " name", "is required", ""),
    ("learning_rate = 1e-4\n", "", ":8 train.learning_rate", "is required", ""),
    ('task = "chain_sum"', "", ":5 data.task", "is required", "chain_sum"),
    ("steps = 100", "steps = 100\nwarmup_steps = 101", ":10 train.warmup_steps", "longer than steps", ""),
    ("steps = 100", 'steps = 100\nschedule = "wsd"', ":8 train.decay_steps", "is required", "tenth"),
    ("steps = 100", "steps = 100\ndecay_steps = 5", ":10 train.decay_steps", 'for schedule = "wsd"', ""),
    ("steps = 100", 'steps = 100\nmethod = "cpt"\nneftune_alpha = 5', ":11 train.neftune_alpha", "is for sft", ""),
    (
        "[evaluate]",
        "[train.validation]\nevery_steps = 30\n[train.checkpoint]\nkeep_best = 1\n[evaluate]",
        ":14 train.validation.every_steps",
        "does not divide checkpoint.every_steps = 100",
        "keep_best",
    ),
    ("steps = 100", 'steps = 100\ntuner = "lora"\noptimizer = "muon"', ":11 train.optimizer", "whole matrices", ""),
    ("steps = 100", 'steps = 100\nengine = "fsdp"\nprecision = "fp8"', ":11 train.precision", "has no fp8", "bf16"),
    ("[evaluate]", 'tuner="lora"\nprecision="fp8"\nlora.rank = 8\n[evaluate]', ":15 train.lora.rank", "of 16", ""),
    ("steps = 100", "steps = 100\nmicro_batch_size = 5", ":11 train.global_batch_size", "not divisible", ""),
    ("steps = 100", "steps = 100\nminimum_learning_rate = 1", ":10 train.minimum_learning_rate", "above", ""),
    ("[evaluate]", "[train.lora]\nrank = 8\n[evaluate]", ":13 train.lora", "no meaning", "tuner"),
    ('"chain_sum"', '"chain_sum"\ntrain_seed = 3\nevaluation_seed = 3', ":9 data.evaluation_seed", "same", ""),
    ('"chain_sum"', '"chain_sum"\ntrain = ["x"]', ":8 data.train", 'not for source = "reasoning-gym"', ""),
    ('"chain_sum"', '"chain_sum"\ntask_options.seed = 3', ":8 data.task_options.seed", "keys of its own", ""),
    ('method = "gptq"', 'method = "fp8"\nbits = 4', ":17 quantize.bits", "fp8 has 8 bits", "remove"),
    ('method = "gptq"', 'method = "int8"\ngroup_size = 64', ":17 quantize.group_size", "is for gptq", ""),
    ('method = "gptq"', 'method = "gptq"\ncalibration_samples = 0', ":17 quantize.calib", "at least 1", ""),
    ('method = "gptq"', 'method = "fp8"\ncalibration_samples = 8', ":17 quantize.calib", "is for gptq", "remove"),
    # keys that would do nothing, or harm
    ("port = 0", 'extra_arguments = ["--api-key=x"]', ":18 serve.extra_arguments[0]", "kept in the plan", "secrets ="),
    ("port = 0", 'extra_arguments = ["--port", "80"]', ":18 serve.extra_arguments[0]", "key of its own", "serve.port"),
    ("[serve]\nport = 0", '[tracking]\nproject = "p"', ":18 tracking.project", "without wandb", "remove"),
    ("[serve]", '[tracking]\nwandb_mode = "offline"\n[serve]', ":18 tracking.wandb_mode", "without wandb", "remove"),
    ("[serve]", '[tracking]\nmlflow_uri = "http://x"\n[serve]', ":18 tracking.mlflow_uri", "without mlflow", "remove"),
    (
        "[serve]",
        '[tracking]\nmlflow = true\nmlflow_uri = "sqlite:///x.db"\n[serve]',
        ":19 tracking.mlflow_uri",
        "not the address of a server",
        "a folder is used",
    ),
    (
        "[serve]",
        '[tracking]\nmlflow = true\nmlflow_uri = "https://me:pw@x"\n[serve]',
        ":19 tracking.mlflow_uri",
        "holds a name or password",
        "env.secrets",
    ),
    (
        "[serve]",
        '[tracking]\nwandb = true\nwandb_mode = "online"\n[serve]',
        ":19 tracking.wandb_mode",
        "asks for a key",
        'secrets = ["WANDB_API_KEY"]',
    ),
    ("steps = 100", "steps = 100\nspike_factor = -1", ":10 train.spike_factor", "at least 0", ""),
    # sizes and durations
    ("nodes = 1", 'memory = "24X"', ":20 resources.train.memory", "is not a size", "24G"),
    ("nodes = 1", "memory = 0", ":20 resources.train.memory", "less than one MiB", ""),
    ("nodes = 1", "memory = 1.5", ":20 resources.train.memory", "neither a whole number nor a text", "MiB"),
    ("nodes = 1", 'time_limit = "soon"', ":20 resources.train.time_limit", "not a duration", "1h30m"),
    ("nodes = 1", 'time_limit = "0m"', ":20 resources.train.time_limit", "not longer than zero", ""),
    # sbatch words
    ("nodes = 1", 'extra = ["-N2"]', ":20 resources.train.extra[0]", "not one long sbatch option", ""),
    ("nodes = 1", 'extra = ["--nodes=2"]', ":20 resources.train.extra[0]", "key of its own", "key nodes"),
    ("nodes = 1", 'extra = [\n"--wrap=id"]', ":21 resources.train.extra[0]", "is set by swiftlaunch", ""),
    # variables and secrets
    ('OMP_NUM_THREADS = "2"', "OMP_NUM_THREADS = 2", ":22 env.variables.OMP_NUM_THREADS", "a text", ""),
    ('OMP_NUM_THREADS = "2"', '"A B" = "2"', ':22 env.variables."A B"', "not allowed", "digits"),
    ('OMP_NUM_THREADS = "2"', 'HF_TOKEN = "hf_x"', ":22 env.variables.HF_TOKEN", "secret", "secrets = "),
    ('OMP_NUM_THREADS = "2"', 'MY_API_KEY = "x"', ":22 env.variables.MY_API_KEY", "secret", ""),
    ('OMP_NUM_THREADS = "2"', 'MY_PASSPHRASE = "x"', ":22 env.variables.MY_PASSPHRASE", "secret", ""),
    ('OMP_NUM_THREADS = "2"', 'SLURM_JOB_ID = "1"', ":22 env.variables.SLURM_JOB_ID", "is set by", ""),
    ("variables =", 'secrets = ["A-B"]\n#', ":22 env.secrets[0]", "not allowed", "digits"),
    ("variables =", 'secrets = ["SWIFTLAUNCH_ATTEMPT"]\n#', ":22 env.secrets[0]", "is set by", ""),
    ("variables =", 'secrets = ["A", "A"]\n#', ":22 env.secrets[1]", "twice", ""),
    # TOML itself
    ("steps = 100", "steps = ", ":9:9", "not valid TOML: Invalid value", "quotes"),
    ("steps = 100", "steps = 100\nsteps = 200", ":10:12", "not valid TOML: Cannot overwrite", ""),
    ("[train]", "[train", ":8:7", "not valid TOML", ""),
    ('"a test"', '"a \\q test"', ":2:", "not valid TOML: Unescaped", ""),
    ('variables = { OMP_NUM_THREADS = "2" }\n', "variables = {", " (end of file)", "not valid TOML", ""),
    # sweeps
    ("[serve]", "[sweep]\nparameters = {}\n[serve]", ":18 sweep.parameters", "is empty", ""),
    ("[serve]", '[sweep.parameters]\n"train.lr" = [1]\n[serve]', ':18 sweep.parameters."train.lr"', "key", ""),
    ("[serve]", '[sweep.parameters]\n"train" = [1]\n[serve]', ":18 sweep.parameters.train", "table", ""),
    ("[serve]", '[sweep.parameters]\n"name" = ["a"]\n[serve]', ":18 sweep.parameters.name", "swept", ""),
    (
        "[serve]",
        '[sweep.parameters]\n"train.steps" = [10, 0]\n[serve]',
        ':18 sweep.parameters."train.steps"[1]',
        "must be at least 1, not 0",
        "",
    ),
    (
        "[serve]",
        '[sweep]\nmethod = "random"\nsamples = 3\n'
        'parameters."train.learning_rate" = {min = 0.0, max = 1.0, scale = "log"}\n[serve]',
        ':20 sweep.parameters."train.learning_rate".min',
        "more than 0 on a log scale",
        "",
    ),
    (
        "[serve]",
        '[sweep]\nparameters."train.learning_rate" = {min = 0.1, max = 1.0}\n[serve]',
        ':18 sweep.parameters."train.learning_rate"',
        'needs method = "random"',
        "list",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "where", "message", "hint"), CASES, ids=[f"{c[1]!r:.60}" for c in CASES])
def test_one_mistake_one_fault(tmp_path: Path, old: str, new: str, where: str, message: str, hint: str) -> None:
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    faults = faults_of(tmp_path, text)
    assert len(faults) == 1, faults
    assert faults[0].where.startswith("recipe.toml" + where)
    assert message in faults[0].message
    assert hint in faults[0].hint


# every string key that reaches a script, a file name or a command line
STRINGS = [
    ("name = {}\n[model]\nname = 'm'\n", "name"),
    ("name = 'x'\n[model]\nname = {}\n", "model.name"),
    ("name = 'x'\n[model]\nname = 'm'\nrevision = {}\n", "model.revision"),
    *[
        (f"name = 'x'\n[model]\nname = 'm'\n[resources.train]\n{key} = {{}}\n", f"resources.train.{key}")
        for key in ("partition", "account", "qos", "constraint")
    ],
    ("name = 'x'\n[model]\nname = 'm'\n[resources.serve]\nextra = [{}]\n", "resources.serve.extra[0]"),
    ("name = 'x'\n[model]\nname = 'm'\n[serve]\nhost = {}\n", "serve.host"),
    ("name = 'x'\n[model]\nname = 'm'\n[tracking]\nproject = {}\n", "tracking.project"),
    ("name = 'x'\n[model]\nname = 'm'\n[env]\nsecrets = [{}]\n", "env.secrets[0]"),
    ("name = 'x'\n[model]\nname = 'm'\n[env.variables]\n{} = 'x'\n", "env.variables."),
    ("name = 'x'\n[model]\nname = 'm'\n[resources.train]\nmemory = {}\n", "resources.train.memory"),
    ("name = 'x'\n[model]\nname = 'm'\n[resources.train]\ntime_limit = {}\n", "resources.train.time_limit"),
]
HOSTILE = [
    *(r'"a\nb"', r'"a\u0000b"', r'"\u202Egpj"', '"größe"', '"模型"', '""', '"a b"'),
    *('"$(touch /tmp/x)"', '"`id`"', r'"a\"b"', '"a\'b"', '"a;b"'),
]


@pytest.mark.parametrize(("template", "key"), STRINGS, ids=[key for _, key in STRINGS])
@pytest.mark.parametrize("value", HOSTILE)
def test_names_refuse_what_a_shell_or_a_table_would_misread(
    tmp_path: Path, template: str, key: str, value: str
) -> None:
    faults = faults_of(tmp_path, template.format(value))
    assert len(faults) == 1, faults
    assert key in faults[0].where


# free text: a path, a prompt, a word for an engine may hold anything that is one line
LINES = [
    ("name = 'x'\n[model]\npath = {}\n", "model.path"),
    ("name = 'x'\n[model]\nname = 'm'\n[serve]\nextra_arguments = [{}]\n", "serve.extra_arguments[0]"),
    ("name = 'x'\n[model]\nname = 'm'\n[env.variables]\nA = {}\n", "env.variables.A"),
    ("name = 'x'\n[model]\nname = 'm'\n[data]\nsource = 'files'\ntrain = [{}]\n", "data.train[0]"),
    ("name = 'x'\n[model]\nname = 'm'\n[data]\nsource = 'files'\ncolumns.prompt = {}\n", "data.columns.prompt"),
]


@pytest.mark.parametrize(("template", "key"), LINES, ids=[key for _, key in LINES])
@pytest.mark.parametrize("value", [r'"a\nb"', r'"a\u0000b"', r'"a\rb"', r'"a\u001bb"', r'"a\u2028b"', r'"a\u202Eb"'])
def test_lines_refuse_control_characters(tmp_path: Path, template: str, key: str, value: str) -> None:
    faults = faults_of(tmp_path, template.format(value))
    assert len(faults) == 1, faults
    assert key in faults[0].where
    assert "control character" in faults[0].message


@pytest.mark.parametrize(("template", "key"), LINES, ids=[key for _, key in LINES])
@pytest.mark.parametrize("value", ['"a b"', '"$(id)"', '"größe 模型"', '"it\'s"', r'"a\"b"'])
def test_lines_take_spaces_quotes_and_unicode(tmp_path: Path, template: str, key: str, value: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(template.format(value), encoding="utf-8")
    load_recipe(path)


def test_a_secret_value_is_never_shown(tmp_path: Path) -> None:
    text = "name = 'x'\n[model]\nname = 'm'\n[env.variables]\nHF_TOKEN = \"hf_abc\\u0007def\"\nWANDB_API_KEY = 4711\n"
    faults = faults_of(tmp_path, text)
    assert {fault.where for fault in faults} == {
        "recipe.toml:5 env.variables.HF_TOKEN",
        "recipe.toml:6 env.variables.WANDB_API_KEY",
    }
    assert not any("hf_abc" in str(fault) or "4711" in str(fault) for fault in faults)


def test_all_faults_in_one_go(tmp_path: Path) -> None:
    text = GOOD.replace("steps = 100", "stepz = 100").replace("1e-4", '"x"').replace("chain_sum", "chain_sun")
    text = text.replace("port = 0", "port = -1").replace("nodes = 1", "nodes = 0")
    faults = faults_of(tmp_path, text, "evaluate.limit=none", "oops")
    wheres = " | ".join(fault.where for fault in faults)
    for where in (":9 train.stepz", ":12 train.learning_rate", ":7 data.task", ":18 serve.port", ":20 resources.train"):
        assert where in wheres
    assert "--set evaluate.limit" in wheres
    assert '--set "oops"' in wheres
    assert len(faults) == 7, faults


SETS = [
    ("train.stepz=5", "--set train.stepz", "unknown key"),
    ("train.steps=many", "--set train.steps", "must be a whole number"),
    ("train.steps=0", "--set train.steps", "must be at least 1"),
    ("train", '--set "train"', "has no '='"),
    ("=5", '--set "=5"', "is not a key"),
    ("train.=5", '--set "train.=5"', "is not a key"),
    ("a b=5", '--set "a b=5"', "is not a key"),
    ("x]\n[model=5", '--set "x]\\n[model=5"', "is not a key"),
    ("train=5", "--set train", "must be a table"),
    ("name=5", "--set name", "must be a text"),
    ("name=a b", "--set name", "not allowed"),
    ("serve.port=1\nname = 'y'", "--set serve.port", "must be a whole number"),
    ("train.learning_rate=nan", "--set train.learning_rate", "finite"),
    ("data.task=nope_nope", "--set data.task", "not a task"),
    ("resources.train.extra=--exclusive", "--set resources.train.extra", "must be a list"),
    ("extends=other.toml", "--set extends", "only a file can extend"),
]


@pytest.mark.parametrize(("word", "where", "message"), SETS)
def test_bad_overrides(tmp_path: Path, word: str, where: str, message: str) -> None:
    faults = faults_of(tmp_path, GOOD, word)
    assert len(faults) == 1, faults
    assert faults[0].where == where
    assert message in faults[0].message


def report(path: Path) -> Fault:
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 2
    assert len(caught.value.faults) == 1
    return caught.value.faults[0]


def test_files_that_cannot_be_recipes(tmp_path: Path) -> None:
    (tmp_path / "my recipe.toml").write_text(GOOD)
    assert report(tmp_path / "my recipes.toml") == Fault(
        str(tmp_path / "my recipes.toml"), "no such file", f"did you mean {tmp_path / 'my recipe.toml'}?"
    )
    assert "folder" in report(tmp_path).message
    assert "my recipe.toml" in report(tmp_path).hint
    assert report(Path("a\0b\n")) == Fault('"a\\u0000b\\n"', "cannot be read: embedded null byte", "")
    assert "cannot be read: Not a directory" in report(tmp_path / "my recipe.toml" / "x").message
    assert report(tmp_path / ("n" * 300)).message.startswith("cannot be read: File name too long")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b'name = "x"\ndescription = "gr\xf6\xdfe"\n')
    assert report(latin) == Fault(f"{latin}:2", "not UTF-8: byte 0xf6", "save it as UTF-8 (iconv -f LATIN1 -t UTF-8)")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 18) + b"\n")
    assert "larger than" in report(large).message
    os.mkfifo(tmp_path / "pipe.toml")
    assert "not a regular file" in report(tmp_path / "pipe.toml").message
    deep = tmp_path / "deep.toml"
    deep.write_text("a = " + "[" * 5000 + "]" * 5000)
    assert "nested" in report(deep).message or "TOML" in report(deep).message
    empty = tmp_path / "empty.toml"
    empty.write_text("")
    with pytest.raises(InputError) as caught:
        load_recipe(empty)
    assert [fault.where for fault in caught.value.faults] == [f"{empty} name", f"{empty} model"]


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.toml"
    if os.geteuid() == 0:  # who may read everything but what the kernel gives to nobody
        path.symlink_to("/proc/sys/net/ipv4/route/flush")
    else:
        path.write_text(GOOD)
        path.chmod(0)
    assert "Permission denied" in report(path).message


def test_extends_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text('# b\nextends = "sub/../a.toml"\n')
    fault = report(tmp_path / "a.toml")
    assert fault.where == f"{tmp_path / 'b.toml'}:2 extends"
    assert "circle" in fault.message
    (tmp_path / "self.toml").write_text('extends = "self.toml"\n')
    assert "circle" in report(tmp_path / "self.toml").message


def test_extends_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(GOOD)
    child = tmp_path / "child.toml"
    child.write_text('name = "x"\nextends = "bose.toml"\n')
    fault = report(child)
    assert fault.where == f"{child}:2 extends"
    assert "bose.toml: no such file" in fault.message
    assert "base.toml" in fault.hint
    child.write_text("extends = 5\n")
    assert report(child).message == "5 is not a path"


def test_a_fault_names_the_file_that_the_value_came_from(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "base.toml").write_text(GOOD.replace("steps = 100", "steps = 0"))
    child = tmp_path / "child.toml"
    child.write_text('extends = "base/base.toml"\n[train]\nlearning_rate = -1.0\n')
    with pytest.raises(InputError) as caught:
        load_recipe(child)
    assert [fault.where for fault in caught.value.faults] == [
        f"{tmp_path / 'base' / 'base.toml'}:9 train.steps",
        f"{child}:3 train.learning_rate",
    ]


SCRAPS = [
    "[",
    "]",
    "{",
    "}",
    '"',
    "'",
    '"""',
    "=",
    ".",
    ",",
    "#",
    "\\n",
    "\n",
    "nan",
    "[[data]]",
    "1979-05-27",
    "a.b.c=1",
    "\x00",
]


@settings(max_examples=300)
@given(st.integers(0, len(GOOD)), st.integers(0, 40), st.sampled_from(SCRAPS) | st.text(max_size=8))
def test_any_damage_gives_a_report(tmp_path_factory: pytest.TempPathFactory, at: int, length: int, scrap: str) -> None:
    """A file with a piece cut out or put in either loads or is refused; it is never a traceback."""
    path = tmp_path_factory.mktemp("damage") / "recipe.toml"
    path.write_bytes((GOOD[:at] + scrap + GOOD[at + length :]).encode("utf-8", "surrogatepass"))
    assert all(fault.where and fault.message for fault in complaints(path))


@settings(max_examples=150)
@given(
    st.sampled_from(["name", "model", "data", "data.task_options", "train", "train.lora.target_modules", "evaluate"])
    | st.sampled_from(["resources.train.extra", "env", "env.variables", "env.secrets", "sweep", "sweep.parameters"])
    | st.sampled_from(["serve.extra_arguments", "data.train", "model.path", "quantize", "resources", "train.steps"]),
    st.recursive(
        st.integers() | st.floats() | st.booleans() | st.text(max_size=4) | st.just("1979-05-27"),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["min", "max", "a"]), inner),
        max_leaves=4,
    ),
)
def test_any_value_anywhere_gives_a_report(tmp_path_factory: pytest.TempPathFactory, key: str, value: object) -> None:
    path = tmp_path_factory.mktemp("values") / "recipe.toml"
    path.write_text(GOOD)
    assert all(fault.where and fault.message for fault in complaints(path, f"{key}={toml(value)}"))


def complaints(path: Path, *overrides: str) -> tuple[Fault, ...]:
    """The faults of a recipe that may have none."""
    try:
        load_recipe(path, overrides)
    except InputError as error:
        return error.faults
    return ()


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value).lower() if isinstance(value, (bool, float)) else json.dumps(value, ensure_ascii=False)


def test_calibration_needs_rows_to_train_on(tmp_path: Path) -> None:
    text = 'name = "q"\nmodel.name = "qwen3-8b"\n[data]\nsource = "files"\nevaluation = ["e.jsonl"]\n[quantize]\n'
    for method in ("gptq", "int8"):
        (fault,) = faults_of(tmp_path, f'{text}method = "{method}"\n')
        assert "data.train" in fault.where
        assert f"{method} calibrates with rows to train on" in fault.message


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_trackers_without_training_are_refused(tmp_path: Path, tracker: str) -> None:
    text = f'name = "s"\nmodel.name = "qwen3-8b"\n[serve]\n[tracking]\n{tracker} = true\n'
    (fault,) = faults_of(tmp_path, text)
    assert fault.where == f"recipe.toml:5 tracking.{tracker}"


def test_the_servers_api_key_is_a_secret_like_others(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD.replace("variables =", 'secrets = ["SWIFTLAUNCH_SERVE_TOKEN"]\nvariables ='))
    assert load_recipe(path).recipe.env.secrets == ("SWIFTLAUNCH_SERVE_TOKEN",)
