"""The wheel in an empty virtual environment, far from the checkout: everything that it needs is inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher import assets

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {  # of smollm2-135m-instruct; a plan needs no weights
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `swiftlaunch` program of an environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("swiftlaunch-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    pip("--python", folder / "venv", "install", wheel)
    return folder / "venv/bin/swiftlaunch"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the demo's model in the place where the local site looks."""
    folder = tmp_path / "home"
    model = folder / ".cache/swiftlaunch/models/smollm2-135m-instruct"
    model.mkdir(parents=True)
    (model / "config.json").write_text(json.dumps(CONFIG))
    return folder


def run(program: Path, home: Path, words: Sequence[str], code: int = 0) -> str:
    """stdout of a command that a user types in their home, with nothing of this environment around."""
    environ = {"HOME": str(home), "PATH": os.defpath, "LANG": "C.UTF-8"}
    done = subprocess.run([program, *words], cwd=home, env=environ, capture_output=True, text=True)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_plan_of_a_shipped_recipe(installed: Path, home: Path) -> None:
    plan: dict[str, Any] = json.loads(run(installed, home, ["plan", "sft-smollm2-cpu", "--site", "local", "--json"]))
    stages = [stage["name"] for stage in plan["stages"]]
    assert stages == ["baseline", "train", "export", "evaluate", "quantize", "evaluate-quantized", "serve"]
    assert Path(plan["recipe_path"]).is_relative_to(installed.parents[1])
    assert str(ROOT) not in json.dumps(plan)


def test_everything_shipped_is_inside(installed: Path, home: Path) -> None:
    (inside,) = installed.parents[1].glob("lib/python*/site-packages/launcher/_assets")
    for kind in ("recipes", "site", "templates"):
        shipped = {str(path.relative_to(ROOT)) for path in assets.folder(kind).rglob("*") if path.is_file()}
        assert shipped == {str(path.relative_to(inside)) for path in (inside / kind).rglob("*") if path.is_file()}


def test_other_commands(installed: Path, home: Path) -> None:
    files = run(installed, home, ["render", "sft-smollm2-cpu", "--output", "out"]).split()
    assert len(files) == 8
    assert "example-slurm" in run(installed, home, ["sites"])
    roles = run(installed, home, ["env", "list"])
    assert all(role in roles for role in ("train", "transformers", "gptq", "compressor", "vllm"))
    run(installed, home, ["init", "mine.toml"])
    assert json.loads(run(installed, home, ["schema"]))["title"]
    assert json.loads(run(installed, home, ["runs", "--json"])) == []
    run(installed, home, ["submit", "sft-smollm2-cpu", "--site", "local"], code=2)  # no environment is built
    assert not (home / ".local/share/swiftlaunch/runs").exists()
