"""Quantized copies of the real demo model, each served by the real engine that takes it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launcher.record import read_json
from launcher.work.serving.client import answer_of, chat, listening

from .conftest import Run, evaluate_options, quantize_options, serve_options

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def check_quantized(run: Run, stage: str, base: Path, method: str) -> None:
    result = json.loads(run.files.result(stage).read_text())
    metrics = result["metrics"]
    assert metrics["size_mib_after"] < 0.65 * metrics["size_mib_before"]
    artifact = run.files.artifact(stage)
    assert read_json(artifact / "config.json")["quantization_config"]["quant_method"] == method
    assert (artifact / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert [path.name for path in artifact.parent.iterdir() if path.name.startswith(".")] == []


def check_served(run: Run, stage: str) -> None:
    result = json.loads(run.files.result(stage).read_text())
    assert "Paris" in result["artifacts"]["answer"]
    ready = run.events(stage, "ready")[-1]
    assert not run.files.endpoint(stage).exists()
    assert not listening(ready["host"], ready["port"])


def test_gptq_is_served_by_transformers(run: Run, real_model: Path) -> None:
    run.finish("quantize", "gptq", quantize_options(real_model, "gptq", group_size=32, calibration_samples=32))
    check_quantized(run, "quantize", real_model, "gptq")
    layers = [event["done"] for event in run.events("quantize", "progress")]
    assert layers == list(range(31))
    model = {"name": "demo", "artifact_of": "quantize"}
    metrics = run.finish("evaluate", "gptq", evaluate_options(model, limit=4))["metrics"]
    assert metrics["perplexity"] < 1000, "a broken kernel gives about the vocabulary's size"
    run.finish("serve", "gptq", serve_options(model, "transformers", "gptq"))
    check_served(run, "serve")


@pytest.mark.parametrize("method", ["int8", "fp8"])
def test_int8_and_fp8_are_served_by_vllm(run: Run, real_model: Path, method: str) -> None:
    run.finish("quantize", "compressor", quantize_options(real_model, method))
    check_quantized(run, "quantize", real_model, "compressed-tensors")
    run.finish("serve", "vllm", serve_options({"name": "demo", "artifact_of": "quantize"}, "vllm", method))
    check_served(run, "serve")


def test_a_group_size_that_does_not_divide_is_fatal(run: Run, cut_model: Path) -> None:
    run.finish("quantize", "gptq", quantize_options(cut_model, "gptq", group_size=128), code=78)
    assert "group size 128 does not divide" in run.failure("quantize")
    assert "possible: 16, 32, 64" in run.failure("quantize")
    assert not run.files.artifact("quantize").exists()


def test_quantizing_starts_anew_after_a_stop(run: Run, cut_model: Path) -> None:
    options = quantize_options(cut_model, "gptq")
    process = run.start("quantize", "gptq", options)
    run.wait_for(lambda: run.events("quantize", "progress"), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 75
    assert not run.files.artifact("quantize").exists()
    run.finish("quantize", "gptq", options, attempt=2)
    check = run.finish("evaluate", "gptq", evaluate_options({"artifact_of": "quantize"}, limit=2, max_new_tokens=2))
    assert math.isfinite(check["metrics"]["perplexity"])


def test_a_server_that_stays_answers_until_it_is_stopped(run: Run, real_model: Path) -> None:
    options = serve_options({"path": str(real_model)}, "transformers", keep_alive_minutes=5)
    for attempt, number, code in ((1, signal.SIGTERM, 75), (2, signal.SIGUSR2, 0)):
        process = run.start("serve", "transformers", options, attempt=attempt)
        found = run.wait_for(lambda: read_json(run.files.endpoint("serve")), process)
        assert found["engine"] == "transformers"
        assert found["base_url"] == f"http://127.0.0.1:{found['port']}/v1"
        reply = chat(
            found["host"], found["port"], model=found["model"], prompt="What is the capital of France?", max_tokens=16,
            token="", timeout_seconds=120,
        )  # fmt: skip
        assert "Paris" in answer_of(reply)
        process.send_signal(number)
        assert process.wait(60) == code, run.log("serve")
        assert not run.files.endpoint("serve").exists()
        assert not listening(found["host"], found["port"])
        with pytest.raises(ProcessLookupError):
            os.killpg(found["pid"], 0)
        assert run.files.result("serve").exists() == (code == 0)


def test_a_server_killed_by_force_takes_the_stage_with_it(run: Run, cut_model: Path) -> None:
    options = serve_options({"path": str(cut_model)}, "transformers", keep_alive_minutes=5)
    process = run.start("serve", "transformers", options)
    found = run.wait_for(lambda: read_json(run.files.endpoint("serve")), process)
    os.kill(found["pid"], signal.SIGKILL)
    assert process.wait(60) == 78
    assert "the server ended with code -9" in run.failure("serve")
    assert not run.files.endpoint("serve").exists()


def test_a_server_that_dies_early_is_quoted(run: Run, cut_model: Path) -> None:
    options = serve_options({"path": str(cut_model)}, "transformers", extra_arguments=["--no-such-option"])
    run.finish("serve", "transformers", options, code=78)
    assert "no-such-option" in run.failure("serve")


def test_a_known_bad_combination_is_refused_before_it_starts(run: Run, cut_model: Path) -> None:
    started = time.monotonic()
    run.finish("serve", "vllm", serve_options({"path": str(cut_model)}, "vllm", "gptq"), code=78)
    assert "dies on the first request" in run.failure("serve")
    assert time.monotonic() - started < 30


@pytest.mark.gpu
def test_sglang_serves_on_a_gpu(run: Run, real_model: Path) -> None:
    if not shutil.which("nvidia-smi") or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode:
        pytest.skip("no NVIDIA GPU")
    options = serve_options({"name": "demo", "path": str(real_model)}, "sglang")
    run.finish("serve", "sglang", options, gpus=1)
    check_served(run, "serve")
