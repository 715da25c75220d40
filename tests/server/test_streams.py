"""Tests of streams that are silent, fail or take too long, and of clients that disconnect or stop reading."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from gemlet.chat import Content
from gemlet.errors import MemoryLimitError
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.slow_clients import connect, head
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.extra("serve")
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
ROUTES = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/completions": {"prompt": "The"},
    "/v1/messages": {"model": "demo", "messages": QUESTION, "max_tokens": 9},
    "/api/chat": {"model": "demo", "messages": QUESTION},
    "/api/generate": {"model": "demo", "prompt": "The"},
}
END = chunk(Content("."), reason="stop")


@pytest.fixture(scope="module")
def quick() -> Iterator[RunningServer]:
    """A server that sends pings often and soon closes the connections of clients that do not read."""
    from gemlet.server.settings import Settings

    with serving(Settings(ping_seconds=0.1, stuck_seconds=0.5, idle_seconds=0.5)) as running:
        yield running


def begin(server: RunningServer, path: str, *, buffer: int | None = None, **more: Any) -> socket.socket:
    """Sends a request, and does not read the answer. The receive buffer of the connection holds about
    ``buffer`` bytes."""
    body = json.dumps({**ROUTES[path], "stream": True, **more}).encode()
    connection = connect(server.port, buffer=buffer)
    connection.sendall(head(path, len(body)) + body)
    return connection


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_pings_during_a_prefill(quick: RunningServer, path: str) -> None:
    with saying(0.5, chunk(Content("Yes")), END):
        body = quick.post(path, {**ROUTES[path], "stream": True}).body
    ping = b"event: ping\n" if path == "/v1/messages" else b": ping\n\n"
    assert body.count(ping) >= 2
    assert body.index(ping) < body.index(b"Yes")


@pytest.mark.parametrize("path", ROUTES)
def test_chunks_that_are_ready_together_are_sent_together(quick: RunningServer, path: str) -> None:
    steps = [chunk(Content(f"{word} ")) for word in ("One", "two", "three")]
    with saying(*steps, 0.3, chunk(Content("four")), END), begin(quick, path) as connection:
        received = b""
        while b"three" not in received:
            received += connection.recv(1 << 16)
        assert b"four" not in received  # the server does not wait for the next chunk
        with connection.makefile("rb") as rest:
            while b"0\r\n\r\n" not in received:
                received += rest.read1(1 << 16)
    _, _, body = received.partition(b"\r\n\r\n")
    sent = re.split(rb"(?:^|\r\n)[0-9a-f]+\r\n", body)  # splits the body into its HTTP chunks
    assert [piece for piece in sent if b"One " in piece and b"three " in piece]
    assert not [piece for piece in sent if b"three " in piece and b"four" in piece]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("stream", [True, False])
def test_work_stops_when_the_client_disconnects(quick: RunningServer, path: str, stream: bool) -> None:
    with saying(chunk(Content("Yes")), 2 * PATIENCE, END) as begun:
        connection = begin(quick, path, stream=stream)
        until(lambda: begun)
        time.sleep(0.05)
        assert quick.running() == 1
        connection.close()
        quick.wait_idle()
    assert begun[0].was_cancelled
    assert begun[0].was_closed


def test_a_real_model_stops(quick: RunningServer) -> None:
    connection = begin(quick, "/v1/completions", max_tokens=900, ignore_eos=True)
    connection.recv(300)
    connection.close()
    quick.wait_idle()
    with_model = quick.server.app.service.models.loaded[0][1]
    until(lambda: with_model.memory()["kv_cache"] == 0)


@pytest.mark.parametrize("path", ROUTES)
def test_an_error_in_the_middle(quick: RunningServer, path: str) -> None:
    error = MemoryLimitError("no memory for the next block")
    with saying(chunk(Content("Yes")), error) as begun:
        body = quick.post(path, {**ROUTES[path], "stream": True}).body
        whole = quick.post(path, {**ROUTES[path], "stream": False})
    lines = [line for line in body.split(b"\n") if line.strip()]
    last = json.loads(lines[-1].removeprefix(b"data: "))
    assert "no memory" in str(last["error"])
    assert b"[DONE]" not in body
    assert whole.status == 503
    assert "retry-after" in whole.headers
    assert all(stream.was_closed for stream in begun)


@pytest.mark.parametrize("path", ROUTES)
def test_unexpected_errors_end_a_stream_and_are_logged(
    quick: RunningServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with saying(ZeroDivisionError("pomegranate")):
        whole = quick.post(path, {**ROUTES[path], "stream": False})
        body = quick.post(path, {**ROUTES[path], "stream": True}).body
    assert whole.status == 500
    assert b"pomegranate" not in whole.body + body
    assert b"the server failed" in whole.body
    assert b"the server failed" in body

    def failures() -> list[Any]:
        return [record for record in caplog.records if record.getMessage() == "failure"]

    until(lambda: len(failures()) == 2)
    assert [record.fields["error"] for record in failures()] == ["ZeroDivisionError"] * 2


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(("reason", "status"), [("timeout", 504), ("cancelled", 503)])
def test_the_status_of_a_reply_that_the_server_ended(
    quick: RunningServer, path: str, reason: str, status: int
) -> None:
    with saying(chunk(Content("Yes")), chunk(reason=reason)):
        assert quick.post(path, {**ROUTES[path], "stream": False}).status == status
        assert b"error" in quick.post(path, {**ROUTES[path], "stream": True}).body


def test_a_client_that_reads_nothing_loses_its_stream(quick: RunningServer) -> None:
    large = chunk(Content("x" * 100_000))
    with saying(*[large] * 1000, END) as begun:
        connection = begin(quick, "/v1/chat/completions", buffer=2048)
        until(lambda: begun and begun[0].was_closed)
        quick.wait_idle()
        connection.close()
    assert begun[0].was_cancelled


def test_a_connection_that_breaks_while_the_server_sends(quick: RunningServer) -> None:
    """The server cancels the reply when the connection breaks. Both the task that watches the connection and
    a failed send can notice this. Without the watching task, the failed send is enough."""
    large = chunk(Content("x" * 100_000))

    async def watches_nothing(_: object) -> None:
        await asyncio.sleep(2 * PATIENCE)

    blind = mock.patch("gemlet.server.answers.StreamAnswer._watch", watches_nothing)
    with blind, saying(*[large] * 1000, END) as begun:
        connection = begin(quick, "/v1/chat/completions", buffer=2048)
        until(lambda: begun and begun[0].was_closed)
        quick.wait_idle()
        connection.close()
    assert begun[0].was_cancelled


def test_connections_that_send_nothing_or_half_a_request(quick: RunningServer) -> None:
    for sent in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"):
        with socket.create_connection(("127.0.0.1", quick.port), timeout=PATIENCE) as connection:
            connection.sendall(sent)
            assert connection.recv(1000) == b""


def test_a_client_that_does_not_read_its_answer(quick: RunningServer) -> None:
    """The answer is not streamed, and most of it waits in the send buffer. The server closes the
    connection."""
    quick.wait_idle()
    with saying(chunk(Content("x" * 8_000_000)), END):
        connection = begin(quick, "/v1/completions", buffer=2048, stream=False)
        until(lambda: quick.server.server_state.connections)
        until(lambda: not quick.server.server_state.connections, "the connection stays")
        connection.close()


def test_stuck_clients_do_not_hold_up_a_fast_one(quick: RunningServer) -> None:
    def once() -> float:
        started = time.perf_counter()
        assert quick.ask("GET", "/health").status == 200
        return time.perf_counter() - started

    alone = sorted(once() for _ in range(20))[10]
    stuck = [socket.create_connection(("127.0.0.1", quick.port)) for _ in range(100)]
    for connection in stuck:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
        )
    beside = sorted(once() for _ in range(20))[10]
    for connection in stuck:
        connection.close()
    quick.wait_idle()
    assert beside < 20 * alone + 0.05


def test_too_many_requests_at_a_time() -> None:
    from gemlet.server.settings import Settings

    with serving(Settings(max_requests=1)) as server, saying(5.0, END) as begun:
        connection = begin(server, "/v1/chat/completions")
        until(lambda: begun)
        answer = server.post("/v1/chat/completions", {"messages": QUESTION})
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert server.ask("GET", "/health").status == 200
        connection.close()
        server.wait_idle()
