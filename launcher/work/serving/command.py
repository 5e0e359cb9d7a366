"""Command lines and environments of the inference servers. Pure: what is written here is what the tests compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launcher.engines import SERVE_KEY_VARIABLE
from launcher.errors import WorkerError

# transformers sizes its KV cache by the free memory of the machine unless told: 512 blocks of 32 tokens
CACHE_BLOCKS = 512
CACHE_BLOCK_TOKENS = 32
VLLM_CPU_CACHE_GIB = 2  # KV cache of vLLM on a CPU


@dataclass(frozen=True)
class Server:
    """What to serve and where. `gpus` of the node are divided by tensor parallelism; 0 is a CPU server."""

    engine: str
    python: str
    model: str  # folder
    name: str  # as clients call the model; transformers knows its folder alone
    host: str
    port: int
    gpus: int
    cores: int
    quantization: str = ""
    token_file: str = ""  # SGLang's configuration file that holds the API key; "" for none
    extra_arguments: Sequence[str] = ()

    @property
    def client_name(self) -> str:
        """The model's name in requests."""
        return self.model if self.engine == "transformers" else self.name


def server_argv(server: Server) -> list[str]:
    """The engine's own server, as one would start it by hand. `extra_arguments` come last, so they win."""
    arguments = {"transformers": _transformers, "vllm": _vllm, "sglang": _sglang}[server.engine](server)
    return [server.python, *arguments, "--host", server.host, "--port", str(server.port), *server.extra_arguments]


def server_environment(server: Server, environ: Mapping[str, str], token: str) -> dict[str, str]:
    """The server's environment: offline, no telemetry, the job's cores, and the API key where the engine reads it.

    Raises WorkerError for an API key with an engine that has none: the server would be open without a word.
    """
    if token and server.engine == "transformers":
        raise WorkerError(
            "transformers serve has no API key",
            where=SERVE_KEY_VARIABLE,
            hint='unset it and keep host = "127.0.0.1", or choose engine = "vllm" or "sglang"',
        )
    # PYTHONPATH holds the run's copy of launcher/, which is none of the server's business
    variables = {name: value for name, value in environ.items() if name not in ("PYTHONPATH", SERVE_KEY_VARIABLE)}
    variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if not server.gpus:
        variables.setdefault("OMP_NUM_THREADS", str(server.cores))
        variables.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if server.engine == "vllm":
        variables |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}
        if token:
            variables["VLLM_API_KEY"] = token
        if not server.gpus:
            variables.setdefault("VLLM_CPU_KVCACHE_SPACE", str(VLLM_CPU_CACHE_GIB))
            # the scheduler has bound the job already; vLLM would bind to cores of the whole machine
            variables.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return variables


def _transformers(server: Server) -> list[str]:
    on_cpu = ["--device", "cpu"] if not server.gpus else []
    # fp32 on CPUs, of which few compute in bf16; int4 kernels take half precision
    dtype = "float32" if not server.gpus and not server.quantization else "auto"
    return [
        *("-m", "transformers.cli.transformers", "serve", server.model),
        *on_cpu,
        *("--dtype", dtype, "--continuous-batching"),
        *("--cb-num-blocks", str(CACHE_BLOCKS), "--cb-block-size", str(CACHE_BLOCK_TOKENS)),
    ]


def _vllm(server: Server) -> list[str]:
    # the `vllm` command asks for a distribution of that name, which the CPU build is not; the module is the same server
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", server.model, "--served-model-name", server.name]
    if server.gpus > 1:
        words += ["--tensor-parallel-size", str(server.gpus)]
    if not server.gpus:
        words += ["--enforce-eager"]  # compiling takes minutes and a C++ compiler
    return words


def _sglang(server: Server) -> list[str]:
    words = ["-m", "sglang.launch_server", "--model-path", server.model, "--served-model-name", server.name]
    if server.gpus > 1:
        words += ["--tp-size", str(server.gpus)]
    if server.token_file:
        words += ["--config", server.token_file]
    return words
