"""Tests of requests by web pages of other origins (CORS). By default the server allows no other origin.
Allowed origins get the headers that browsers expect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemlet.errors import InvalidRequestError
from support.servers import Answer, RunningServer, serving

pytestmark = pytest.mark.extra("serve")
PAGE = "https://chat.example"
BODY: Any = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, str]]:
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    path = str(tmp_path_factory.mktemp("keys") / "keys.db")
    store = KeyStore(path, create=True)
    key = store.create("page")
    store.close()
    with serving(Settings(keys=path, allowed_origins=[PAGE])) as server:
        yield server, key


def cors(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control")}


def preflight(server: RunningServer, origin: str, path: str = CHAT) -> Answer:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    return server.ask("OPTIONS", path, headers={"Origin": origin, **asked})


def test_an_allowed_page(locked: tuple[RunningServer, str]) -> None:
    server, key = locked
    asked = preflight(server, PAGE)
    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert {"authorization", "x-api-key", "content-type"} <= set(
        asked.headers["access-control-allow-headers"].split(", ")
    )
    answer = server.post(CHAT, BODY, headers={"Origin": PAGE}, key=key)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "origin" in answer.headers["vary"]
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers


def test_an_allowed_page_reads_errors_and_streams(locked: tuple[RunningServer, str]) -> None:
    server, key = locked
    denied = server.post(CHAT, BODY, headers={"Origin": PAGE})
    assert (denied.status, denied.headers["access-control-allow-origin"]) == (401, PAGE)
    stream = server.post(CHAT, {**BODY, "stream": True}, headers={"Origin": PAGE}, key=key)
    assert (stream.status, stream.headers["access-control-allow-origin"]) == (200, PAGE)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "https://chat.example.evil.example", "http://chat.example", "null", ""),
        *("https://chat.example:444", "https://chat.example/", "https://xchat.example", "*"),
    ],
)
def test_other_pages(locked: tuple[RunningServer, str], origin: str) -> None:
    server, key = locked
    for answer in (preflight(server, origin), server.post(CHAT, BODY, headers={"Origin": origin}, key=key)):
        assert answer.status == 403
        assert not cors(answer)


def test_requests_that_are_not_preflights_need_a_key(locked: tuple[RunningServer, str]) -> None:
    server, _ = locked
    assert server.ask("OPTIONS", CHAT, headers={"Origin": PAGE}).status == 401
    assert server.ask("OPTIONS", CHAT).status == 401
    asked = {"Access-Control-Request-Method": "POST"}
    assert server.ask("OPTIONS", CHAT, headers=asked).status == 401
    assert server.ask("GET", "/v1/models", headers={"Origin": PAGE, **asked}).status == 401


def test_a_preflight_does_not_reveal_paths(locked: tuple[RunningServer, str]) -> None:
    server, _ = locked
    first, other = (preflight(server, PAGE, path) for path in (CHAT, "/nothing"))
    assert cors(first) == cors(other)
    assert first.status == other.status


def test_cors_is_off_by_default(tmp_path: Path) -> None:
    with serving() as server:
        own = {"Origin": f"http://127.0.0.1:{server.port}"}
        assert not cors(server.ask("GET", "/v1/models", headers=own))
        assert preflight(server, PAGE).status == 403


@pytest.mark.parametrize(
    "origin", ["*", "chat.example", "https://*.example", "null", "https://a b", "https://a/b"]
)
def test_values_that_are_not_origins_are_refused(origin: str) -> None:
    from gemlet.server.settings import Settings

    with pytest.raises(InvalidRequestError, match="allowed_origins"):
        Settings(allowed_origins=[origin])
