"""The parts of the workers that need no engine: replies, processes, folders, scores."""

from __future__ import annotations

import http.server
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import WorkerError
from launcher.work.convert import owning_package
from launcher.work.data import Problem
from launcher.work.evaluate import Item, summarize, write_items
from launcher.work.folders import fresh_beside, publish, weights_mib, weights_sha256
from launcher.work.quantize import check_group_size, keep_tokenizer
from launcher.work.serving.client import Reply, answer_of, chat, listening
from launcher.work.serving.process import ServerProcess, free_port

pytestmark = pytest.mark.unit


def completion(content: Any) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


def test_an_answer_is_the_text_of_the_first_choice() -> None:
    assert answer_of(Reply(200, completion(" Paris.\n"))) == "Paris."


@pytest.mark.parametrize(
    ("status", "body", "word"),
    [
        (422, '{"detail": "unknown field"}', "HTTP 422"),
        (200, "<html>", "not a chat completion"),
        (200, '{"choices": []}', "not a chat completion"),
        (200, completion(None), "with nothing"),
        (200, completion("  \n"), "with nothing"),
    ],
)
def test_what_is_no_answer(status: int, body: str, word: str) -> None:
    with pytest.raises(WorkerError, match=word):
        answer_of(Reply(status, body))


@contextmanager
def http_server(seen: list[dict[str, Any]]) -> Iterator[int]:
    """A server that notes requests; the client's end of the conversation is what is tested."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append({"path": self.path, "authorization": self.headers["Authorization"], **body})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(completion("yes").encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def test_a_request_is_greedy_and_carries_the_key() -> None:
    seen: list[dict[str, Any]] = []
    with http_server(seen) as port:
        assert listening("127.0.0.1", port)
        reply = chat(
            "127.0.0.1", port, model="m", prompt="really?", max_tokens=7, token="key", timeout_seconds=5
        )  # fmt: skip
    assert answer_of(reply) == "yes"
    assert seen == [
        {
            "path": "/v1/chat/completions", "authorization": "Bearer key", "model": "m", "max_tokens": 7,
            "temperature": 0.0, "messages": [{"role": "user", "content": "really?"}],
        }
    ]  # fmt: skip
    assert not listening("127.0.0.1", port)


def test_stopping_ends_children_that_ignore_term(tmp_path: Path) -> None:
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = ServerProcess([sys.executable, "-c", parent], os.environ, tmp_path / "server.log")
    deadline = time.monotonic() + 20
    while not {"child", "deaf"} <= set(process.tail().split()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child_pid = int(process.tail().split("child ")[1].split()[0])
    assert process.exit_code is None
    process.stop()
    assert process.exit_code == -15
    while Path(f"/proc/{child_pid}/cmdline").exists() and Path(f"/proc/{child_pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.stop()  # of a server that is gone: nothing happens


def test_the_tail_of_a_server_that_died(tmp_path: Path) -> None:
    program = "for number in range(100): print('line', number)\nraise SystemExit(3)"
    process = ServerProcess([sys.executable, "-c", program], os.environ, tmp_path / "logs" / "server.log")
    deadline = time.monotonic() + 20
    while process.exit_code is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.exit_code == 3
    assert process.tail(2) == "line 98\nline 99"


def test_free_ports_can_be_bound() -> None:
    assert 1024 < free_port("127.0.0.1") < 65536


def test_a_published_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    for number in (1, 2):
        part = fresh_beside(target)
        (part / f"model-{number}.safetensors").write_bytes(bytes([number]) * 2**20)
        (part / f"model-{number}.safetensors").chmod(0o600)
        publish(part, target)
        assert [path.name for path in target.iterdir()] == [f"model-{number}.safetensors"]
        assert weights_mib(target) == 1.0
        assert (target / f"model-{number}.safetensors").stat().st_mode & 0o777 == target.stat().st_mode & 0o666
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_what_a_killed_attempt_left_is_removed(tmp_path: Path) -> None:
    (fresh_beside(tmp_path / "artifact") / "half").write_text("")
    assert list(fresh_beside(tmp_path / "artifact").iterdir()) == []


def test_the_weights_hash_sees_every_file_and_their_order(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    (tmp_path / "b.safetensors").write_bytes(b"2")
    (tmp_path / "config.json").write_text("{}")
    before = weights_sha256(tmp_path)
    (tmp_path / "config.json").write_text('{"dtype": "float32"}')
    assert weights_sha256(tmp_path) == before
    (tmp_path / "a.safetensors").write_bytes(b"2")
    (tmp_path / "b.safetensors").write_bytes(b"1")
    assert weights_sha256(tmp_path) != before


def item(score: float | None, nll: float | None = None, tokens: int = 0) -> Item:
    return Item(Problem("x:1", (), "7"), "7", score, nll, tokens)


def test_metrics() -> None:
    metrics = summarize([item(1.0, 2.0, 3), item(0.0, 4.0, 1), item(1.0), item(None)])
    assert metrics["problems"] == 4
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["accuracy_stderr"] == pytest.approx(math.sqrt((2 / 9 + 4 / 9) / 2) / math.sqrt(3))
    assert metrics["perplexity"] == pytest.approx(math.exp(6 / 4))
    assert metrics["perplexity_tokens"] == 4


def test_metrics_that_there_is_nothing_for_are_left_out() -> None:
    assert summarize([item(None)]) == {"problems": 1}
    assert summarize([item(1.0)]) == {"problems": 1, "accuracy": 1.0, "accuracy_stderr": None, "mean_score": 1.0}


def test_partial_credit_is_not_accuracy() -> None:
    metrics = summarize([item(1.0), item(0.5), item(0.0), item(0.5)])
    assert metrics["accuracy"] == 0.25
    assert metrics["mean_score"] == 0.5


def test_a_line_per_item(tmp_path: Path) -> None:
    path = tmp_path / "artifact" / "items.jsonl"
    write_items(path, [item(1.0, 2.0, 3), item(None)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["score"] for row in rows] == [1.0, None]
    assert rows[0] | {"messages": []} == {
        "id": "x:1", "messages": [], "answer": "7", "output": "7", "score": 1.0, "answer_nll": 2.0, "answer_tokens": 3,
    }  # fmt: skip


def test_group_sizes_that_do_not_divide_name_those_that_do() -> None:
    check_group_size(64, [576, 1536])
    check_group_size(-1, [7])
    with pytest.raises(WorkerError) as refused:
        check_group_size(128, [1536, 576, 576])
    assert str(refused.value).endswith("layers (576, 1536)\n  hint: possible: 16, 32, 64")


def test_the_tokenizer_is_kept_byte_for_byte(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    (source / "tokenizer.json").write_text("original")
    (target / "tokenizer.json").write_text("rewritten")
    (target / "special_tokens_map.json").write_text("invented")
    (target / "model.safetensors").write_text("weights")
    keep_tokenizer(source, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "tokenizer.json": "original", "model.safetensors": "weights",
    }  # fmt: skip


def test_the_package_of_an_unpacked_wheel_is_found(tmp_path: Path) -> None:
    file = tmp_path / "llm_tiny" / "tiny.gguf"
    info = tmp_path / "llm_tiny-1.2.dist-info"
    for folder in (file.parent, info):
        folder.mkdir()
    file.write_bytes(b"GGUF")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.2\n")
    (info / "RECORD").write_text("llm_tiny/tiny.gguf,,\n")
    assert owning_package(file) == ("llm-tiny", "1.2")
    assert owning_package(info / "RECORD") == ("", "")
