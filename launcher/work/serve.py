"""Serve a model with its engine's own OpenAI-compatible server: start it, prove that it answers, keep it, stop it.

Ready means that a chat completion came back; its address is in the stage's endpoint.json from then until it stops.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.engines import SERVE_KEY_VARIABLE, engine_refusal
from launcher.errors import WorkerError
from launcher.record import write_json, write_text
from launcher.work.context import Context
from launcher.work.models import cores, model_folder
from launcher.work.serving.client import Reply, answer_of, chat, listening
from launcher.work.serving.command import Server, server_argv, server_environment
from launcher.work.serving.process import ServerProcess, free_port

START_SECONDS = 3600.0  # large models from a cold parallel file system
REQUEST_SECONDS = 1800.0  # first requests compile kernels
POLL_SECONDS = 0.5


def run(context: Context) -> None:
    """Serve `options.model` as `options.serve` says. The result holds the first request and its answer."""
    if not context.is_main:
        return
    started = time.monotonic()
    options = context.options["serve"]
    token = os.environ.get(SERVE_KEY_VARIABLE, "")
    server = _server(context, token)
    log = context.files.attempt(context.stage.name, context.attempt) / "server.log"
    with _running(context, server, token, log) as process:
        ready = _wait_until_listening(context, server, process)
        asked = time.monotonic()
        answer = answer_of(_first_reply(context, server, process, token))
        now = time.monotonic()
        metrics = {"seconds_to_listen": round(ready - started, 1), "seconds_to_answer": round(now - asked, 2)}
        with _published(context, server, process):
            print(f"prompt: {options['prompt']}\nanswer: {answer}", flush=True)
            _keep(context, process, 60.0 * float(options["keep_alive_minutes"]))
    context.finish(
        metrics=metrics | {"seconds": round(time.monotonic() - started, 1)},
        artifacts={
            "engine": server.engine,
            "model": server.model,
            "argv": server_argv(server),
            "log": str(log),
            "prompt": options["prompt"],
            "answer": answer,
        },
    )


def _server(context: Context, token: str) -> Server:
    options = context.options["serve"]
    engine, quantization = context.options["engine"], context.options.get("quantization") or ""
    gpus = context.stage.resources.gpus_per_node
    if refusal := engine_refusal(engine, quantization, gpus):
        raise WorkerError(refusal, where="serve.engine")
    token_file = ""
    if token and engine == "sglang":
        path = context.files.attempt(context.stage.name, context.attempt) / "server.yaml"
        write_text(path, f"api-key: {json.dumps(token)}\n", mode=0o600)
        token_file = str(path)
    return Server(
        engine=engine,
        python=sys.executable,
        model=str(model_folder(context)),
        name=str(context.options["model"].get("name") or context.plan.name),
        host=options["host"],
        port=options["port"] or free_port(options["host"]),
        gpus=gpus,
        cores=cores(),
        quantization=quantization,
        token_file=token_file,
        extra_arguments=tuple(options["extra_arguments"]),
    )


@contextmanager
def _running(context: Context, server: Server, token: str, log: Path) -> Iterator[ServerProcess]:
    """The server, until the block ends; its death is told with the last lines that it wrote."""
    process = ServerProcess(server_argv(server), server_environment(server, os.environ, token), log)
    try:
        yield process
    finally:
        process.stop()
        if server.token_file:
            Path(server.token_file).unlink(missing_ok=True)


@contextmanager
def _published(context: Context, server: Server, process: ServerProcess) -> Iterator[None]:
    """endpoint.json, while the server answers."""
    path = context.files.endpoint(context.stage.name)
    host = server.host
    if host in ("0.0.0.0", "::"):  # noqa: S104  (what a client elsewhere can use)
        host = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    write_json(
        path,
        {
            "host": host,
            "port": server.port,
            "base_url": f"http://{f'[{host}]' if ':' in host else host}:{server.port}/v1",
            "model": server.client_name,
            "engine": server.engine,
            "pid": process.pid,
        },
    )
    context.event("ready", host=host, port=server.port)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _wait_until_listening(context: Context, server: Server, process: ServerProcess) -> float:
    deadline = time.monotonic() + START_SECONDS
    while not listening(_client_host(server), server.port):
        _check(context, process)
        if time.monotonic() > deadline:
            raise TimeoutError(f"the server was not healthy after {START_SECONDS:.0f} s; its output: {process.log}")
        time.sleep(POLL_SECONDS)
    return time.monotonic()


def _first_reply(context: Context, server: Server, process: ServerProcess, token: str) -> Reply:
    """The reply to the recipe's prompt; looks after the server and the scheduler's signals while it waits."""
    options = context.options["serve"]
    outcome: dict[str, Any] = {}

    def ask() -> None:
        try:
            outcome["reply"] = chat(
                _client_host(server),
                server.port,
                model=server.client_name,
                prompt=options["prompt"],
                max_tokens=int(options["max_new_tokens"]),
                token=token,
                timeout_seconds=REQUEST_SECONDS,
            )
        except OSError as error:
            outcome["error"] = error

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    while asking.is_alive():
        asking.join(POLL_SECONDS)
        _check(context, process)
    if "error" in outcome:
        time.sleep(POLL_SECONDS)  # a dying server breaks the connection before it is gone
        _check(context, process)
        raise outcome["error"]
    reply: Reply = outcome["reply"]
    return reply


def _keep(context: Context, process: ServerProcess, seconds: float) -> None:
    """Leave the server to its clients. The end of the job's time ends it as well; a preemption asks for another job."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if context.stop_signal == signal.SIGUSR2:
            return
        _check(context, process)
        time.sleep(POLL_SECONDS)


def _check(context: Context, process: ServerProcess) -> None:
    context.raise_if_stopping()
    if (code := process.exit_code) is not None:
        raise WorkerError(f"the server ended with code {code}; it said last:\n{process.tail()}", where=str(process.log))


def _client_host(server: Server) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104
