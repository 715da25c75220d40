"""What hostile clients found: memory of bodies, room for uploads, texts in the logs of others."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from support.scripted_streams import chunk, saying
from support.servers import serving
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.extra("serve")
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
CHAT = "/v1/chat/completions"


def test_bodies_count_until_their_requests_are_answered() -> None:
    """They waited in memory, without a limit, to be parsed and answered."""
    from gemlet.chat import Content
    from gemlet.server.settings import Settings

    large = {"messages": QUESTION, "metadata": {"x": "x" * 60_000}}
    answers: list[int] = []
    with serving(Settings(max_body=100_000, max_bodies=150_000)) as server:
        steps = [chunk(Content("Well")), 0.5, chunk(Content("."), reason="stop")]
        with saying(*steps) as begun:
            asking = [
                threading.Thread(target=lambda: answers.append(server.post(CHAT, large).status))
                for _ in range(2)
            ]
            for thread in asking:
                thread.start()
            until(lambda: len(begun) == 2)
            refused = server.post(CHAT, large)
            for thread in asking:
                thread.join()
        assert answers == [200, 200]
        assert (refused.status, refused.error["type"]) == (503, "overloaded_error")
        for _ in range(5):
            assert server.post(CHAT, {**large, "max_tokens": 1}).status == 200
        for _ in range(5):  # what is refused gives its room back, too
            assert server.post(CHAT, {**large, "surprise": 1}).status == 400
        assert server.server.app.service.bodies._held == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_revoked_key_ends_what_runs(tmp_path: Path, stream: bool) -> None:
    from gemlet.chat import Content
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    path = str(tmp_path / "keys.db")
    store = KeyStore(path, create=True)
    key, other = store.create("a"), store.create("b")
    answers: dict[str, Any] = {}
    body = {"messages": QUESTION, "stream": stream}
    steps = [chunk(Content("Well")), *[0.1] * 8, chunk(Content("."), reason="stop")]
    looks = mock.patch("gemlet.server.app._WATCH", 0.05)
    with looks, serving(Settings(keys=path)) as server, saying(*steps) as begun:
        asking = [
            threading.Thread(target=lambda k=k: answers.update({k: server.post(CHAT, body, key=k)}))
            for k in (key, other)
        ]
        for thread in asking:
            thread.start()
        until(lambda: len(begun) == 2)
        store.revoke("a")
        for thread in asking:
            thread.join()
    store.close()
    assert b"revoked" in answers[key].body
    assert stream or answers[key].status == 401
    assert b"revoked" not in answers[other].body
    assert sorted(one.was_cancelled for one in begun) == [False, True]


def test_uploads_keep_room_while_they_arrive(tmp_path: Path) -> None:
    """Many at a time would have filled the disk, each within the limit."""
    from gemlet.server.file_store import FileStore

    store = FileStore(str(tmp_path / "data"))
    try:
        with store.arriving("a", 70), store.arriving("a", 20):
            assert store.used("a") == (0, 90)
            assert store.used("b") == (0, 0)
        assert store.used("a") == (0, 0)
        assert not store._arriving
    finally:
        store.close()


def test_the_log_of_others_has_no_text() -> None:
    """asyncio's messages quote errors that nobody took, and these quote prompts."""
    from gemlet.server.logs import JSONLines

    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "exception=ValueError('a secret')", (), None)
    assert "secret" not in JSONLines().format(record)
    ours = logging.LogRecord("gemlet.server", logging.INFO, "", 0, "ready", (), None)
    assert '"ready"' in JSONLines().format(ours)


def test_a_body_with_two_lengths_ends_the_connection() -> None:
    """A proxy may take one of them, and this server the other: the rest would then be a request."""
    inner = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    both = b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % (len(inner) + 5)
    received = b""
    with (
        serving() as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection,
        contextlib.suppress(ConnectionResetError),
    ):
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + both + inner)
        while piece := connection.recv(1 << 16):
            received += piece
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"bad_length" in received


def test_an_integer_of_too_many_digits() -> None:
    """The message was Python's, which told of a function."""
    with serving() as server:
        error = server.post("/v1/completions", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}").error
    assert "more than 4300 digits" in error["message"]
    assert "sys." not in error["message"]
