"""Sends the requests of batches to the application within the process, without a network connection."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import anyio.to_thread

from gemlet.base.records import record
from gemlet.server.batch_lines import answer_line
from gemlet.server.keys import Key

__all__ = ["INSIDE", "App", "Inside", "answer"]

App = Callable[..., Any]
INSIDE = "gemlet.inside"  # the guard finds an Inside under this key, which no connection can set
_PATIENCE = 40  # the most repetitions of a request while the server is busy
_LARGE = 1 << 16  # bytes; a thread beside the event loop makes the output lines of larger answers
_LONGEST_WAIT = 60.0  # the most seconds between two tries


@record(frozen=True)
class Inside:
    """A request that the server sends to itself.

    Attributes:
        key: the API key that owns the request; None if the server has no keys.
    """

    key: Key | None = None


async def answer(
    app: App, request: Mapping[str, Any], whose: Callable[[], Inside] = Inside, *, waits: bool = False
) -> tuple[bytes, bool]:
    """Answers a request of a batch. Returns the output line, and whether the status is 200.

    Args:
        request: a request from :func:`requests`. The optional item ``content`` is the body as JSON bytes.
        whose: returns the key of the request. It is called before every try.
        waits: whether to repeat the request while the server is busy or a limit of the key refuses it.
    """
    if request["body"].get("stream"):
        name, status = f"req_{secrets.token_hex(12)}", 400
        body = json.dumps(_refusal("stream: got true, but a batch has no streams; leave it out")).encode()
    else:
        content = request.get("content") or json.dumps(request["body"]).encode()
        name, status, body, pause = await _post(app, request["url"], content, whose())
        tries = 0
        while waits and (status == 429 or (status == 503 and tries < _PATIENCE)):
            tries += status == 503
            await asyncio.sleep(pause)
            name, status, body, pause = await _post(app, request["url"], content, whose())
    make = partial(_line, request["custom_id"], status, name, body)
    return await anyio.to_thread.run_sync(make) if len(body) > _LARGE else make(), status == 200


def _line(custom_id: str, status: int, name: str, body: bytes) -> bytes:
    return answer_line(custom_id, status=status, request_id=name, body=json.loads(body))


def _refusal(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}


async def _post(app: App, path: str, content: bytes, inside: Inside) -> tuple[str, int, bytes, float]:
    """Sends a request. Returns its id, the status, the body, and the seconds to wait before the next try."""
    status, parts = 500, []
    found: dict[bytes, bytes] = {}
    unsent = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if unsent:
            return unsent.pop()
        await asyncio.Event().wait()  # this connection is never closed
        raise AssertionError

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            found.update(message["headers"])
        elif message["type"] == "http.response.body":
            parts.append(message.get("body", b""))

    headers = {"host": "localhost", "content-type": "application/json", "content-length": str(len(content))}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
        INSIDE: inside,
    }
    await app(scope, receive, send)
    pause = min(_LONGEST_WAIT, float(found.get(b"retry-after", b"1")))
    return found.get(b"x-request-id", b"").decode(), status, b"".join(parts), pause
