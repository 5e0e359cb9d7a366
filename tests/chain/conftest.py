"""A user with a home and a folder of their own, whose commands are real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher import assets

TINY_CONFIG = {
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
GOOD = """\
name = "fine"
description = "fine"
[model]
path = "tiny"
[data]
source = "files"
train = ["rows.jsonl"]
evaluation = ["eval rows.jsonl"]
[train]
steps = 4
global_batch_size = 4
micro_batch_size = 2
sequence_length = 64
learning_rate = 1e-4
[train.layout]
pipeline = 2
[evaluate]
limit = 2
[quantize]
method = "gptq"
group_size = 32
[serve]
prompt = "hello"
[resources.train]
tasks_per_node = 2
memory = "4G"
"""


class User:
    """`folder` has spaces in its name and holds a good recipe, its data and a tiny model's configuration."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "my recipes"
        self.home = root / "home"
        self.home.mkdir(parents=True)
        (self.folder / "tiny").mkdir(parents=True)
        (self.folder / "tiny/config.json").write_text(json.dumps(TINY_CONFIG))
        row = json.dumps({"prompt": "1 + 1?", "completion": "2"})
        (self.folder / "rows.jsonl").write_text(row + "\n")
        (self.folder / "eval rows.jsonl").write_text(row + "\n")
        (self.folder / "bad.jsonl").write_text(row + "\nnot JSON\n")
        self.write(GOOD)
        self.environ = {
            "HOME": str(self.home),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(assets.folder("templates").parent),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def write(self, recipe: str) -> None:
        (self.folder / "recipe.toml").write_text(recipe)

    def everything(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}

    def start(self, words: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launcher", *words],
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def swiftlaunch(self, *words: str) -> subprocess.CompletedProcess[str]:
        process = self.start(words)
        stdout, stderr = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)
