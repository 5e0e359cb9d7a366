"""The engines' command lines, word for word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from launcher.errors import WorkerError
from launcher.work.serving.command import Server, server_argv, server_environment

pytestmark = pytest.mark.golden

TRANSFORMERS = Server(
    engine="transformers", python="/env/bin/python", model="/run/artifact", name="smollm2",
    host="127.0.0.1", port=40001, gpus=0, cores=2,
)  # fmt: skip
VLLM = replace(TRANSFORMERS, engine="vllm")
SGLANG = replace(TRANSFORMERS, engine="sglang", gpus=1)

ARGV = {
    "transformers-cpu": (
        TRANSFORMERS,
        "/env/bin/python -m transformers.cli.transformers serve /run/artifact --device cpu --dtype float32 "
        "--continuous-batching --cb-num-blocks 512 --cb-block-size 32 --host 127.0.0.1 --port 40001",
    ),
    "transformers-cpu-gptq": (
        replace(TRANSFORMERS, quantization="gptq"),
        "/env/bin/python -m transformers.cli.transformers serve /run/artifact --device cpu --dtype auto "
        "--continuous-batching --cb-num-blocks 512 --cb-block-size 32 --host 127.0.0.1 --port 40001",
    ),
    "transformers-gpu": (
        replace(TRANSFORMERS, gpus=1),
        "/env/bin/python -m transformers.cli.transformers serve /run/artifact --dtype auto "
        "--continuous-batching --cb-num-blocks 512 --cb-block-size 32 --host 127.0.0.1 --port 40001",
    ),
    "vllm-cpu": (
        VLLM,
        "/env/bin/python -m vllm.entrypoints.openai.api_server --model /run/artifact --served-model-name smollm2 "
        "--enforce-eager --host 127.0.0.1 --port 40001",
    ),
    "vllm-4-gpus": (
        replace(VLLM, gpus=4, host="0.0.0.0", extra_arguments=("--max-model-len", "8192")),
        "/env/bin/python -m vllm.entrypoints.openai.api_server --model /run/artifact --served-model-name smollm2 "
        "--tensor-parallel-size 4 --host 0.0.0.0 --port 40001 --max-model-len 8192",
    ),
    "sglang-1-gpu": (
        SGLANG,
        "/env/bin/python -m sglang.launch_server --model-path /run/artifact --served-model-name smollm2 "
        "--host 127.0.0.1 --port 40001",
    ),
    "sglang-8-gpus-token": (
        replace(SGLANG, gpus=8, token_file="/run/logs/server.yaml", extra_arguments=("--mem-fraction-static", "0.8")),
        "/env/bin/python -m sglang.launch_server --model-path /run/artifact --served-model-name smollm2 "
        "--tp-size 8 --config /run/logs/server.yaml --host 127.0.0.1 --port 40001 --mem-fraction-static 0.8",
    ),
}


@pytest.mark.parametrize("case", ARGV)
def test_argv(case: str) -> None:
    server, line = ARGV[case]
    assert server_argv(server) == line.split()


def test_clients_name_the_model_as_the_engine_knows_it() -> None:
    assert TRANSFORMERS.client_name == "/run/artifact"
    assert VLLM.client_name == SGLANG.client_name == "smollm2"


def test_the_api_key_is_in_the_environment_of_vllm_alone() -> None:
    environ = {"PATH": "/bin", "PYTHONPATH": "/run/code", "SWIFTLAUNCH_SERVE_TOKEN": "secret"}
    for server in (VLLM, SGLANG):
        variables = server_environment(server, environ, "secret")
        assert "secret" not in " ".join(server_argv(server))
        assert [name for name, value in variables.items() if value == "secret"] == (
            ["VLLM_API_KEY"] if server.engine == "vllm" else []
        )
        assert "PYTHONPATH" not in variables
        assert variables["PATH"] == "/bin"


def test_an_api_key_that_the_engine_would_ignore_is_refused() -> None:
    with pytest.raises(WorkerError, match="no API key"):
        server_environment(TRANSFORMERS, {}, "secret")


def test_cpu_servers_do_not_spin_and_the_user_has_the_last_word() -> None:
    variables = server_environment(VLLM, {"VLLM_CPU_KVCACHE_SPACE": "8"}, "")
    assert variables["OMP_WAIT_POLICY"] == "PASSIVE"
    assert variables["OMP_NUM_THREADS"] == "2"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "8"
    assert "OMP_WAIT_POLICY" not in server_environment(replace(VLLM, gpus=1), {}, "")
