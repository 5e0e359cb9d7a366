"""From a GGUF file to a Hugging Face folder, on a tiny file made here."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
from pathlib import Path

import pytest

from .conftest import HERE, ROOT, engine_python

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

TOKENS = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
facts = [tokenizer.tokenize("a  12"), tokenizer.eos_token, tokenizer.model_max_length, bool(tokenizer.chat_template)]
print(json.dumps(facts))
"""


def convert(gguf: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [engine_python("transformers"), "-m", "launcher.work.convert", str(gguf), str(target)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


def bf16_tensor(file: Path, name: str) -> list[float]:
    """A bf16 tensor of a safetensors file: 8 bytes of header length, JSON header, data."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])[name]
    assert header["dtype"] == "BF16"
    start, end = (8 + length + offset for offset in header["data_offsets"])
    raw = data[start:end]
    return [struct.unpack("<f", b"\0\0" + raw[at : at + 2])[0] for at in range(0, len(raw), 2)]


def test_convert(tmp_path: Path) -> None:
    python = engine_python("transformers")
    gguf = tmp_path / "tiny.gguf"
    made = subprocess.run(
        [python, str(HERE / "make_gguf.py"), str(gguf)], check=True, capture_output=True, text=True, timeout=120
    )
    expected = json.loads(made.stdout.splitlines()[-1])
    target = tmp_path / "models" / "tiny"
    done = convert(gguf, target)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [["progress", str(n), "5"] for n in range(6)]
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]

    embedding = bf16_tensor(target / "model.safetensors", "model.embed_tokens.weight")
    assert len(embedding) == expected["vocabulary"] * 64
    assert embedding == pytest.approx(expected["embedding"], rel=2**-8, abs=1e-30)

    source = json.loads((target / "source.json").read_text())
    assert source["gguf_sha256"] == hashlib.sha256(gguf.read_bytes()).hexdigest()
    assert source["gguf_type"] == "Q4_1"
    assert source["weights_sha256"] == hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
    assert "not the weights of the original release" in source["note"]

    asked = subprocess.run([python, "-c", TOKENS, str(target)], check=True, capture_output=True, text=True, timeout=120)
    pieces, end, longest, has_template = json.loads(asked.stdout.splitlines()[-1])
    assert pieces == ["a", "\u0120\u0120", "1", "2"], "numbers are cut off before spaces are merged, as SmolLM does"
    assert (end, longest, has_template) == ("<|im_end|>", 256, True)

    again = convert(gguf, target)
    assert again.returncode == 2
    assert "the folder exists" in again.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    done = convert(tmp_path / "none.gguf", tmp_path / "model")
    assert done.returncode == 2
    assert "no such GGUF file" in done.stderr
    assert not (tmp_path / "model").exists()
