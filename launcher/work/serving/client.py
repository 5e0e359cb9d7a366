"""One request to an OpenAI-compatible server. Standard library alone: it must run in every engine's environment."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass

from launcher.errors import WorkerError


@dataclass(frozen=True)
class Reply:
    """A status and a body."""

    status: int
    body: str


def listening(host: str, port: int) -> bool:
    """Whether the server answers /health. Healthy is not ready: some engines die on the first request."""
    try:
        return _request("GET", host, port, "/health", None, "", 5.0).status == 200
    except OSError:
        return False


def chat(
    host: str, port: int, *, model: str, prompt: str, max_tokens: int, token: str, timeout_seconds: float
) -> Reply:
    """A greedy chat completion. Raises OSError where the connection fails or breaks."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
    }
    return _request("POST", host, port, "/v1/chat/completions", json.dumps(body), token, timeout_seconds)


def answer_of(reply: Reply) -> str:
    """The text of a chat completion. Raises WorkerError for an error, another shape, or an empty answer."""
    if reply.status != 200:
        raise WorkerError(f"the server refused a chat completion with HTTP {reply.status}: {reply.body[:500]}")
    try:
        text = json.loads(reply.body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise WorkerError(f"the server's answer is not a chat completion: {reply.body[:500]}") from None
    if not isinstance(text, str) or not text.strip():
        raise WorkerError("the server answered a chat completion with nothing")
    return text.strip()


def _request(
    method: str, host: str, port: int, path: str, body: str | None, token: str, timeout_seconds: float
) -> Reply:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_seconds)
    headers = {"Content-Type": "application/json"} if body else {}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return Reply(response.status, response.read().decode(errors="replace"))
    except http.client.HTTPException as error:
        raise ConnectionError(f"the server broke off: {error!r}") from error
    finally:
        connection.close()
