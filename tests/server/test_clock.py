"""Tests in which the system clock is set forward or back while the server runs. Time limits and durations do
not change."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gemlet.chat import Content
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.waiting import PATIENCE, until

pytestmark = pytest.mark.extra("serve")
CHAT = "/v1/chat/completions"
ASKED: Any = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 3}
YEAR = 365 * 86400
JUMPS = [10 * YEAR, -10 * YEAR]
FORM = (
    b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%b\r\n--x--\r\n'
)
_now = time.time


@contextmanager
def clock_set(seconds: float) -> Iterator[None]:
    with mock.patch("time.time", side_effect=lambda: _now() + seconds):
        yield


@contextmanager
def with_keys(tmp_path: Path, **limits: int) -> Iterator[tuple[RunningServer, str]]:
    from gemlet.server.keys import KeyStore, Limits
    from gemlet.server.settings import Settings

    path = str(tmp_path / "keys.db")
    store = KeyStore(path, create=True)
    key = store.create("a", Limits(**limits))
    store.close()
    with serving(Settings(keys=path, data=str(tmp_path / "data"))) as server:
        yield server, key


def uploaded(server: RunningServer, content: bytes, key: str | None = None) -> Any:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return server.ask("POST", "/v1/files", FORM % content, kind, key=key)


@pytest.mark.parametrize("jump", JUMPS)
def test_limits_per_minute(tmp_path: Path, jump: float) -> None:
    with with_keys(tmp_path, requests_per_minute=2, tokens_per_day=10_000) as (server, key):
        assert server.post(CHAT, ASKED, key=key).status == 200
        with clock_set(jump):
            answer = server.post(CHAT, ASKED, key=key)
            assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, "0")
            used = 10_000 - int(answer.headers["x-ratelimit-remaining-tokens"])
            assert used > 0
            answer = server.post(CHAT, ASKED, key=key)
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) <= 62
        assert server.post(CHAT, ASKED, key=key).status == 429


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_stream_runs_on_after_the_clock_jumps(tmp_path: Path, jump: float, path: str) -> None:
    """The stream continues to its end, and the server counts the tokens of the stream."""
    asked: Any = {**ASKED, "stream": True} if path == CHAT else {"input": "Who?", "stream": True}
    with with_keys(tmp_path, tokens_per_minute=10_000) as (server, key):
        with saying(chunk(Content("One")), 0.4, chunk(Content(" two"), reason="stop")) as begun:
            answers: list[Any] = []
            thread = threading.Thread(target=lambda: answers.append(server.post(path, asked, key=key)))
            thread.start()
            until(lambda: begun)
            with clock_set(jump):
                thread.join()
        assert b" two" in answers[0].body
        assert b"error" not in answers[0].body.replace(b'"error":null', b"")
        usage = server.ask("GET", "/v1/usage", key=key).json
        assert jump < 0 or usage["data"]


@pytest.mark.parametrize("jump", JUMPS)
def test_a_batch_runs_on_after_the_clock_jumps(tmp_path: Path, jump: float) -> None:
    """The time limit of a batch is a duration from its start, and the clock does not change it."""
    lines = [
        json.dumps({"custom_id": str(i), "method": "POST", "url": CHAT, "body": ASKED}).encode()
        for i in range(3)
    ]
    from gemlet.server.settings import Settings

    steps = [0.3, chunk(Content("One"), reason="stop")]
    settings = Settings(data=str(tmp_path / "data"), batch_concurrent=1)
    with serving(settings) as server, saying(*steps) as begun:
        file = uploaded(server, b"\n".join(lines)).json["id"]
        asked = {"input_file_id": file, "endpoint": CHAT, "completion_window": "1h"}
        name = server.post("/v1/batches", asked).json["id"]
        until(lambda: begun)
        with clock_set(jump):
            until(lambda: server.ask("GET", f"/v1/batches/{name}").json["status"] == "completed")
            batch = server.ask("GET", f"/v1/batches/{name}").json
        assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
        assert server.ask("GET", f"/v1/files/{batch['output_file_id']}/content").body.count(b"\n") == 3


def test_files_that_a_wrong_clock_hides(tmp_path: Path) -> None:
    """If the clock is far ahead, files seem to have expired, and the server does not show them. They appear
    again when the clock is right. The server deletes them only if the clock stays ahead for an hour."""
    from gemlet.server.settings import Settings

    with mock.patch("gemlet.server.app._SWEEP", 0.05), serving(Settings(data=str(tmp_path / "d"))) as server:
        found = uploaded(server, b"{}").json["id"]
        content = tmp_path / "d" / "files" / found
        with clock_set(YEAR):
            until(lambda: server.ask("GET", f"/v1/files/{found}").status == 404)
            assert uploaded(server, b"{}").status == 200  # an upload also removes expired files
            time.sleep(0.2)
        assert server.ask("GET", f"/v1/files/{found}/content").body == b"{}"
        # The server trusts a clock that was set more than _SETTLED seconds ago. Here that is at once.
        with mock.patch("gemlet.server.file_store._SETTLED", 0.0), clock_set(2 * YEAR):
            until(lambda: not content.exists())
        assert server.ask("GET", f"/v1/files/{found}").status == 404


def test_hidden_files_do_not_count_towards_the_limits(tmp_path: Path) -> None:
    from gemlet.server.settings import Settings

    settings = Settings(data=str(tmp_path / "d"), max_file=10_000, max_storage=15_000)
    with serving(settings) as server:
        assert uploaded(server, b"x" * 10_000).status == 200
        assert uploaded(server, b"x" * 10_000).status == 413
        with clock_set(YEAR):
            assert uploaded(server, b"x" * 10_000).status == 200


@pytest.mark.parametrize("jump", JUMPS)
def test_timeouts_of_connections_and_bodies(jump: float) -> None:
    """The server closes idle connections and slow uploads after their time limit, and not earlier."""
    from gemlet.server.settings import Settings

    with (
        serving(Settings(idle_seconds=1.0, body_seconds=1.0)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as idle,
        clock_set(jump),
    ):
        begun = time.monotonic()
        assert server.ask("GET", "/health?deep=1").status == 200
        assert idle.recv(1) == b""
        assert time.monotonic() - begun > 0.5


@pytest.mark.parametrize("jump", JUMPS)
def test_stored_responses_stay_after_the_clock_jumps(jump: float) -> None:
    with serving() as server:
        name = server.post("/v1/responses", {"input": "Who?", "max_output_tokens": 3}).json["id"]
        with clock_set(jump):
            assert server.ask("GET", f"/v1/responses/{name}").status == 200
            more = {"input": "And?", "previous_response_id": name, "max_output_tokens": 3}
            assert server.post("/v1/responses", more).status == 200
