"""Tests of faults that hostile clients could use, such as unlimited memory for request bodies, a full disk
through uploads, and prompts in the logs of other libraries."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from support.processes import run_program
from support.programs.patterns import pump_all
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.extra("serve")
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
CHAT = "/v1/chat/completions"


def test_bodies_count_until_their_requests_are_answered() -> None:
    """The limit for the memory of request bodies also counts bodies that wait to be parsed and answered."""
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
        for _ in range(5):  # a refused body no longer counts against the limit
            assert server.post(CHAT, {**large, "surprise": 1}).status == 400
        assert server.server.app.service.bodies._held == 0


@pytest.mark.parametrize("stream", [False, True])
def test_revoking_a_key_ends_its_running_requests(tmp_path: Path, stream: bool) -> None:
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


def test_arriving_uploads_count_against_the_limit(tmp_path: Path) -> None:
    """The limit counts uploads that are still arriving. Otherwise many uploads at a time could fill the disk,
    although each one is within the limit."""
    from gemlet.server.file_store import FileStore

    store = FileStore(str(tmp_path / "data"))
    try:
        with store.arriving("a", 70), store.arriving("a", 20):
            assert store.used("a") == (2, 90)
            assert store.used("b") == (0, 0)
        assert store.used("a") == (0, 0)
        assert not store._arriving
        assert not store._uploads
    finally:
        store.close()


def test_logs_of_other_libraries_contain_no_prompts() -> None:
    """asyncio logs the messages of unhandled errors, and these messages may quote prompts."""
    from gemlet.server.logs import JSONLines

    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "exception=ValueError('a secret')", (), None)
    assert "secret" not in JSONLines().format(record)
    ours = logging.LogRecord("gemlet.server", logging.INFO, "", 0, "ready", (), None)
    assert '"ready"' in JSONLines().format(ours)


def test_a_body_with_two_lengths_ends_the_connection() -> None:
    """A request with two Content-Length headers is refused. If a proxy used one length and the server the
    other, the server could read the rest of the body as a request."""
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
    """The error must not be Python's own message, which names a Python function."""
    with serving() as server:
        error = server.post("/v1/completions", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}").error
    assert "more than 4300 digits" in error["message"]
    assert "sys." not in error["message"]


def test_patterns_take_linear_time() -> None:
    """The regular expressions that check Host headers and files must take linear time. With a slow one, a
    Host header of 60 letters and a `!` would keep the server busy forever."""
    assert run_program(pump_all, timeout=PATIENCE) > 90


def test_long_names_of_hosts() -> None:
    from gemlet.server.guard import _HOST

    for name in ("a" * 63, "a" * 63 + ".b:80", ".".join("a" * 32), "x_y-z.", "1.2.3.4", "[::1]:8000"):
        assert _HOST.fullmatch(name), name
    for name in ("a" * 64, "", ".", "a..b", ".a", "-a", ".".join("a" * 33)):
        assert not _HOST.fullmatch(name), name


def form(data: bytes) -> tuple[bytes, dict[str, str]]:
    parts = {"purpose": b"batch", 'file"; filename="a': data}
    body = b"".join(
        f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in parts.items()
    )
    return body + b"--B--\r\n", {"Content-Type": "multipart/form-data; boundary=B"}


def test_a_revoked_key_ends_its_batches_in_the_middle_of_a_reply(tmp_path: Path) -> None:
    """The batch ends at once. It does not first finish the current reply."""
    from gemlet.chat import Content
    from gemlet.server.file_store import FileStore
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    key = store.create("a")
    settings = Settings(keys=str(tmp_path / "keys.db"), data=str(tmp_path / "data"))
    line = json.dumps({"custom_id": "1", "url": CHAT, "body": {"messages": QUESTION}}).encode()
    steps = [chunk(Content("Well")), PATIENCE * 2, chunk(Content("."), reason="stop")]
    looks = mock.patch("gemlet.server.app._WATCH", 0.05)
    with looks, serving(settings) as server, saying(*steps) as begun:
        body, headers = form(line)
        file = server.ask("POST", "/v1/files", body, headers, key=key).json["id"]
        batch = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
        name = server.post("/v1/batches", batch, key=key).json["id"]
        until(lambda: begun)
        batches = server.server.app.service.batches
        store.revoke("a")
        until(lambda: not batches.uses(file), "the batch goes on")
        assert begun[0].was_cancelled
    files = FileStore(settings.data or "")
    found = files.batch(files.owner_of(name), name)
    files.close()
    store.close()
    assert found is not None
    assert (found["status"], found["errors"]["data"][0]["code"]) == ("failed", "invalid_api_key")


def test_a_line_that_is_nested_too_deep(tmp_path: Path) -> None:
    """The check of a new batch refuses the line. Without a limit of the depth, the check could accept a line
    that Python cannot parse later, deeper in the call stack, and the batch would then fail in the middle."""
    from gemlet.server.batch_lines import WrongLineError, checked_ids

    source = tmp_path / "in.jsonl"
    for depth, is_refused in ((60, False), (70, True), (900, True), (100_000, True)):
        deep = b"[" * depth + b"]" * depth
        source.write_bytes(b'{"custom_id": "1", "url": "/v1/completions", "body": {"prompt": ' + deep + b"}}")
        if is_refused:
            with pytest.raises(WrongLineError, match="line 1"):
                checked_ids(source)
        else:
            assert checked_ids(source) == {"1"}


def test_errors_name_only_the_models_of_a_key(tmp_path: Path) -> None:
    """The error for an unknown model must name only the models that the key may use."""
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import ModelSpec, Settings

    store = KeyStore(str(tmp_path / "keys.db"), create=True)
    one, all_of_them = store.create("one", models=["mine"]), store.create("all")
    store.close()
    settings = Settings(keys=str(tmp_path / "keys.db"))
    with serving(settings, [ModelSpec("mine"), ModelSpec("secret")]) as server:
        for path in (CHAT, "/v1/messages", "/api/chat"):
            body = {"model": "nothing", "messages": QUESTION, "max_tokens": 1}
            if path == "/api/chat":
                del body["max_tokens"]
            answer = server.post(path, body, key=one)
            assert (answer.status, b"mine" in answer.body, b"secret" in answer.body) == (404, True, False)
            assert b"secret" in server.post(path, body, key=all_of_them).body


def test_a_restarted_server_counts_usage_in_the_right_window(tmp_path: Path) -> None:
    """After a restart, usage counts only in the minute or hour to which it belongs. Usage that was stored
    while the clock was ahead does not count forever."""
    from gemlet.server.call import Call
    from gemlet.server.keys import KeyStore, Limits
    from gemlet.server.limits import Limiter
    from gemlet.server.problems import Problem

    store = KeyStore(str(tmp_path / "keys.db"), create=True)

    def key(**limits: int) -> Any:
        found = store.find(store.create(str(limits), Limits(**limits)).encode())
        assert found is not None
        return found

    minute, hour = key(requests_per_minute=2, tokens_per_minute=10), key(requests_per_hour=2)
    for one in (minute, hour):
        for _ in range(3):
            store.add_usage(one.id, "demo", 6, 6)
    Limiter(5, store).enter(Call(key=minute))
    with pytest.raises(Problem, match="an hour"):
        Limiter(5, store).enter(Call(key=hour))
    late = key(requests_per_hour=1)
    with mock.patch("time.time", return_value=4e9):
        store.add_usage(late.id, "demo", 6, 6)
    Limiter(5, store).enter(Call(key=late))
    store.close()


# --- limits of every dialect --------------------------------------------------------------------------------

LEAST: dict[str, Any] = {
    "/v1/chat/completions": {"messages": QUESTION},
    "/v1/completions": {"prompt": "a"},
    "/v1/embeddings": {"input": "a"},
    "/v1/decisions": {"input": "a", "questions": [{"type": "predicate", "instructions": "a"}]},
    "/v1/responses": {"input": "a"},
    "/v1/messages": {"model": "demo", "max_tokens": 1, "messages": QUESTION},
    "/v1/messages/count_tokens": {"model": "demo", "messages": QUESTION},
    "/api/chat": {"model": "demo", "messages": QUESTION, "stream": False},
    "/api/generate": {"model": "demo", "prompt": "a", "stream": False},
    "/api/embed": {"model": "demo", "input": "a"},
    "/api/embeddings": {"model": "demo", "prompt": "a"},
    "/api/show": {"model": "demo"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}


def beyond(kind: Any) -> Iterator[Any]:
    """Values that are too large, too small, too many or too long for a field."""
    from gemlet.server.fields import Biases
    from gemlet.server.schema import Either, Integer, ListOf, Number, Object, Schema, Text

    if isinstance(kind, Integer | Number):
        yield from (kind.low - 1, kind.high * 2 + 1, -(2**63) - 1, 2**70, 1e300)
    elif isinstance(kind, Text) and kind.most < 1 << 20:
        yield "x" * (kind.most + 1)
    elif isinstance(kind, ListOf) and kind.most < 1 << 12:
        yield ["x"] * (kind.most + 1)
        yield [{}] * (kind.most + 1)
    elif isinstance(kind, Schema):
        yield {"description": "x" * (256 << 10)}
    elif isinstance(kind, Biases):
        yield {str(i): 1 for i in range(1025)}
        yield {"5": 101}
    elif isinstance(kind, Either):
        for one in kind.kinds:
            yield from (value for value in beyond(one) if not _is_taken(kind, value))
    elif isinstance(kind, Object):
        for name, one in kind.fields.items():
            yield from ({name: value} for value in beyond(one))


def _is_taken(kind: Any, value: Any) -> bool:
    """True if a field of this kind accepts the value."""
    from gemlet.server.problems import Problem

    with contextlib.suppress(Problem):
        kind.check(value, "there")
        return True
    return False


def test_values_beyond_their_limit_are_errors_of_their_field(server: RunningServer) -> None:
    """For every field of every route, also inside options, the error for a value beyond the limit names the
    field."""
    from gemlet.generation.grammar_text import MOST_BYTES
    from gemlet.server.app import ROUTES
    from gemlet.server.fields import MOST_CHOICES, MOST_TOOLS, STOPS, TOP_LOGPROBS

    tried = 0
    for way in ROUTES:
        if way.table is None or way.path not in LEAST:
            continue
        assert server.post(way.path, LEAST[way.path]).status in (200, 400)
        for name, kind in way.table.items():
            for value in beyond(kind):
                answer = server.post(way.path, {**LEAST[way.path], name: value})
                assert answer.status == 400, (way.path, name, value)
                assert name in str(answer.error), (way.path, name, answer.body)
                tried += 1
    assert tried > 300
    assert (MOST_CHOICES, MOST_TOOLS, STOPS.most, TOP_LOGPROBS.high) == (16, 128, 16, 20)
    assert STOPS.item.most == 256  # type: ignore[attr-defined]
    assert MOST_BYTES == 256 << 10
