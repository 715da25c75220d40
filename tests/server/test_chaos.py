"""Tests with nonsense requests of every kind. The server never answers with status 500, and it frees the
memory and the connections of every request."""

from __future__ import annotations

import gc
import http.client
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.bodies import BODIES, QUESTION
from support.servers import RunningServer, serving
from support.slow_clients import flood, head
from support.waiting import until

pytestmark = pytest.mark.extra("serve")
ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**31,
        2**63,
        -(2**64),
        10**400,
        1e308,
        -0.0,
        0.5,
        "",
        "x",
        "\x00",
        "\ud83d",
    ),
    *("<end_of_turn>", "é" * 300, [], [[]], [None], {}, {"": {}}, {"type": "text"}, {"role": "user"}, "demo"),
    *([{"role": "tool", "content": "x"}], {"type": "image", "source": {"url": "http://x"}}, [1, "x"], "null"),
]
ALLOWED = {200, 400, 403, 404, 413}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    from gemlet.server.settings import Settings

    with serving(Settings(max_body=100_000, idle_seconds=2)) as running:
        yield running


def mutated(value: Any, random_: random.Random) -> Any:
    """A copy of ``value`` in which one random part is replaced by an odd value."""
    if random_.random() < 0.15 or not isinstance(value, dict | list) or not value:
        return random_.choice(ODD)
    if isinstance(value, list):
        place = random_.randrange(len(value))
        return [mutated(item, random_) if i == place else item for i, item in enumerate(value)]
    name = random_.choice(
        [*value, random_.choice(["temperature", "n", "stop", "tools", "options", "x\ud83d"])]
    )
    return {**value, name: mutated(value.get(name, {}), random_)}


def assert_nothing_is_lost(server: RunningServer) -> None:
    server.wait_idle()
    model = server.server.app.service.models.loaded[0][1]
    until(lambda: not model.memory()["kv_cache"], "blocks of the cache are lost")


@pytest.mark.parametrize("path", BODIES)
def test_odd_fields_do_no_harm(server: RunningServer, path: str) -> None:
    random_ = random.Random(path)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    for _ in range(150):
        body = mutated(BODIES[path], random_)
        if random_.random() < 0.3:
            body = mutated(body, random_)
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        answer = response.read()
        assert response.status in ALLOWED, f"{body}: {response.status} {answer[:300]!r}"
        if response.status != 200:
            assert json.loads(answer)["error"], body
    connection.close()
    assert_nothing_is_lost(server)


def test_random_bytes_do_no_harm(server: RunningServer) -> None:
    random_ = random.Random(1)
    whole = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 74\r\n\r\n"
        + json.dumps({"messages": QUESTION, "max_tokens": 2}).encode()
    )
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(random_.randrange(1, 6)):
            data[random_.randrange(len(data))] = random_.randrange(256)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(data[: random_.randrange(1, len(data) + 1)])
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            try:
                while piece := connection.recv(65536):
                    answer += piece
            except ConnectionResetError:
                continue
        assert b" 500 " not in answer.split(b"\r\n")[0]
    assert_nothing_is_lost(server)
    assert server.ask("GET", "/health").status == 200


def test_clients_that_disconnect_at_any_moment(server: RunningServer) -> None:
    random_ = random.Random(2)

    def hasty(seed: int) -> None:
        pick = random.Random(seed)
        for _ in range(15):
            path = pick.choice(list(BODIES))
            body = json.dumps(
                {**BODIES[path], **({"max_tokens": 200} if "max_tokens" in BODIES[path] else {})}
            )
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
                whole = (head + body).encode()
                connection.sendall(whole[: pick.randrange(1, len(whole)) if pick.random() < 0.3 else None])
                time.sleep(pick.random() * 0.02)

    threads = [threading.Thread(target=hasty, args=(random_.random(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_nothing_is_lost(server)
    answer = server.post("/v1/chat/completions", {"messages": QUESTION, "max_tokens": 2})
    assert answer.status == 200


def test_the_objects_of_a_finished_request_are_freed(server: RunningServer) -> None:
    """The objects of a request are freed when the request ends, even if the connection stays open and even if
    the request failed. They may be large and hold a file descriptor. If they referred to each other in a
    cycle, only a later run of Python's garbage collector would free them."""
    from starlette.requests import Request

    from gemlet.generation.async_stream import AsyncTextStream
    from gemlet.server.call import Call

    def left() -> list[str]:
        return [
            repr(found) for found in gc.get_objects() if isinstance(found, Call | AsyncTextStream | Request)
        ]

    @contextmanager
    def asking(path: str, body: object) -> Iterator[socket.socket]:
        content = json.dumps(body).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(head(path, len(content)) + content)
            yield connection

    long = {"max_tokens": 900, "ignore_eos": True}
    gc.collect()
    gc.freeze()  # the garbage collector now ignores all objects that exist already
    gc.disable()
    try:
        for path, body in [
            *BODIES.items(),
            ("/nothing", {}),
            ("/v1/completions", {"prompt": 3}),
            ("/v1/completions", {"prompt": "x y " * 10_000}),
            ("/v1/completions", {"prompt": ["x", "x y " * 10_000], "stream": True}),
        ]:
            with asking(path, body) as connection:
                assert connection.recv(65536).startswith(b"HTTP/1.1 ")
                until(lambda: not left(), f"{path} {body}: it has ended, and something stays")
        for path, body in [
            ("/v1/completions", {"prompt": ["The", "It"], **long}),
            ("/v1/completions", {"prompt": ["The", "It"], **long, "stream": True}),
            ("/v1/chat/completions", {"messages": QUESTION, **long}),
        ]:
            with asking(path, body):
                until(server.running, f"{path} {body}: it has not begun")
            until(lambda: not left(), f"{path} {body}: the client has gone, and something stays")
        flood(server.port, 40)
        until(lambda: not left(), "of a flood something stays")
    finally:
        gc.enable()
        gc.unfreeze()
