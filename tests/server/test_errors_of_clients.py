"""Tests that every error has the form of its dialect. The official clients, synchronous and asynchronous,
raise their own exceptions for whole answers and in the middle of streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from gemlet.chat import Content
from gemlet.errors import MemoryLimitError
from support.extras import optional
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving
from support.waiting import PATIENCE, until

anthropic, ollama, openai = optional("anthropic"), optional("ollama"), optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
ASKED: Any = {"model": "demo", "messages": [{"role": "user", "content": "Who?"}]}
SAID: Any = {**ASKED, "max_tokens": 9}
# The methods of OpenAI's client, and whether each can stream.
OF_OPENAI: dict[str, tuple[Callable[..., Any], bool]] = {
    "chat": (lambda c, **o: c.chat.completions.create(**ASKED, **o), True),
    "completions": (lambda c, **o: c.completions.create(model="demo", prompt="The", **o), True),
    "responses": (lambda c, **o: c.responses.create(model="demo", input="Who?", **o), True),
    "embeddings": (lambda c: c.embeddings.create(model="demo", input="a"), False),
    "models": (lambda c: c.models.retrieve("demo"), False),
    "files": (lambda c: c.files.create(file=b"{}", purpose="batch"), False),
    "content": (lambda c: c.files.content("file-0"), False),
    "batches": (
        lambda c: c.batches.create(
            input_file_id="file-0", endpoint="/v1/completions", completion_window="24h"
        ),
        False,
    ),
    "transcription": (lambda c: c.audio.transcriptions.create(model="demo", file=b"RIFF"), False),
    "kept response": (lambda c: c.responses.retrieve("resp_0"), False),
}
OF_ANTHROPIC: dict[str, tuple[Callable[..., Any], bool]] = {
    "messages": (lambda c, **o: c.messages.create(**SAID, **o), True),
    "count": (lambda c: c.messages.count_tokens(**ASKED), False),
    "models": (lambda c: c.models.retrieve("demo"), False),
}
OF_OLLAMA: dict[str, tuple[Callable[..., Any], bool]] = {
    "chat": (lambda c, **o: c.chat(**ASKED, **o), True),
    "generate": (lambda c, **o: c.generate("demo", "The", **o), True),
    "embed": (lambda c: c.embed("demo", "a"), False),
    "show": (lambda c: c.show("demo"), False),
    "list": (lambda c: c.list(), False),
}
CALLS = [
    *(("openai", name) for name in OF_OPENAI),
    *(("anthropic", name) for name in OF_ANTHROPIC),
    *(("ollama", name) for name in OF_OLLAMA),
]
STREAMS = [(client, name) for client, name in CALLS if globals()[f"OF_{client.upper()}"][name][1]]
STATUSES = {
    400: ("BadRequestError", "BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "AuthenticationError", "authentication_error"),
    403: ("PermissionDeniedError", "PermissionDeniedError", "permission_error"),
    404: ("NotFoundError", "NotFoundError", "not_found_error"),
    405: ("APIStatusError", "APIStatusError", "invalid_request_error"),
    408: ("APIStatusError", "RequestTimeoutError", "timeout_error"),
    409: ("ConflictError", "ConflictError", "conflict_error"),
    413: ("APIStatusError", "ContentTooLargeError", "request_too_large"),
    415: ("APIStatusError", "APIStatusError", "invalid_request_error"),
    422: ("UnprocessableEntityError", "UnprocessableEntityError", "invalid_request_error"),
    429: ("RateLimitError", "RateLimitError", "rate_limit_error"),
    500: ("InternalServerError", "InternalServerError", "api_error"),
    503: ("InternalServerError", "ServiceUnavailableError", "overloaded_error"),
    504: ("InternalServerError", "GatewayTimeoutError", "timeout_error"),
    507: ("InternalServerError", "InternalServerError", "api_error"),
}


@contextlib.contextmanager
def client_of(server: RunningServer, kind: str, key: str = "none", **more: Any) -> Iterator[Any]:
    """The synchronous client of this dialect."""
    if kind == "ollama":
        with ollama.Client(server.url, headers={"Authorization": f"Bearer {key}"}) as client:
            yield client
        return
    url = server.url + ("/v1" if kind == "openai" else "")
    make = openai.OpenAI if kind == "openai" else anthropic.Anthropic
    with make(base_url=url, api_key=key, **{"max_retries": 0, **more}) as client:
        yield client


def raised(server: RunningServer, kind: str, name: str, *, stream: bool, **more: Any) -> list[Any]:
    """The exceptions that the synchronous and the asynchronous client raise. With ``stream``, the clients
    raise them while the caller reads the stream."""
    ask, can_stream = globals()[f"OF_{kind.upper()}"][name]
    options = {"stream": stream} if can_stream else {}
    found: list[Any] = []
    with client_of(server, kind, **more) as client:
        try:
            answer = ask(client, **options)
            if stream:
                list(answer)
        except Exception as error:
            found.append(error)

    async def wait() -> None:
        url = server.url + ("/v1" if kind == "openai" else "")
        client: Any
        if kind == "ollama":
            client = ollama.AsyncClient(server.url)
        else:
            make = openai.AsyncOpenAI if kind == "openai" else anthropic.AsyncAnthropic
            client = make(base_url=url, api_key="none", max_retries=0)
        async with client:
            try:
                answer = await ask(client, **options)
                if stream:
                    async for _ in answer:
                        pass
            except Exception as error:
                found.append(error)

    asyncio.run(asyncio.wait_for(wait(), PATIENCE))
    assert len(found) == 2, found
    return found


@pytest.mark.parametrize("status", STATUSES)
def test_clients_get_errors_instead_of_answers(server: RunningServer, status: int) -> None:
    from gemlet.server.problems import Problem

    problem = Problem(status, "it went wrong", kind="some_error", param="there", code="so")
    with mock.patch("gemlet.server.guard._check_length", side_effect=problem):
        for kind, name in CALLS:
            for stream in (False, True) if (kind, name) in STREAMS else (False,):
                for error in raised(server, kind, name, stream=stream):
                    _check(error, kind, status)


def _check(error: Any, kind: str, status: int) -> None:
    assert error.status_code == status
    if kind == "ollama":
        assert type(error) is ollama.ResponseError
        assert error.error == "it went wrong"
        return
    wanted = STATUSES[status][kind == "anthropic"]
    assert type(error).__name__ == wanted
    assert error.request_id.startswith("req_")
    if kind == "openai":
        assert (error.body["message"], error.type) == ("it went wrong", "some_error")
        assert (error.param, error.code) == ("there", "so")
    else:
        assert (error.api_message, error.type) == ("it went wrong", STATUSES[status][2])
        assert (error.error_code, error.body["request_id"]) == ("so", error.request_id)


@pytest.mark.parametrize(("kind", "name"), STREAMS)
@pytest.mark.parametrize("begun", [False, True])
def test_clients_get_errors_in_streams(server: RunningServer, kind: str, name: str, begun: bool) -> None:
    steps = [chunk(Content("Yes"))] if begun else []
    with saying(*steps, MemoryLimitError("no memory for more")):
        for error in raised(server, kind, name, stream=True):
            assert "no memory for more" in str(error)
            if kind == "openai":
                assert type(error) is openai.APIError
                assert (error.type, error.code) == ("overloaded_error", "overloaded")
            elif kind == "anthropic":
                assert isinstance(error, anthropic.APIStatusError)
                assert (error.type, error.api_message) == ("overloaded_error", "no memory for more")
            else:
                assert type(error) is ollama.ResponseError


def test_the_event_of_a_response_that_failed(server: RunningServer) -> None:
    """A stream of responses that fails ends with the event ``error``, which OpenAI's clients for other
    languages read. The event has the next sequence number."""
    with saying(chunk(Content("Yes")), MemoryLimitError("no memory for more")):
        body = server.post("/v1/responses", {"input": "Who?", "stream": True}).body.decode()
    *before, last = body.strip().split("\n\n")
    name, data = last.split("\n")
    said = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert (said["type"], said["code"], said["message"]) == ("error", "overloaded", "no memory for more")
    assert said["sequence_number"] == len(before)


@pytest.mark.parametrize(("kind", "name"), STREAMS)
def test_stopping_the_server_ends_streams_and_answers(kind: str, name: str) -> None:
    """After ``drain_seconds``, requests that still run end with an error in the form of their dialect."""
    from gemlet.server.settings import Settings

    ask, _ = globals()[f"OF_{kind.upper()}"][name]
    found: list[Any] = []

    def wait(stream: bool) -> None:
        with client_of(server, kind) as client:
            try:
                answer = ask(client, stream=stream)
                if stream:
                    list(answer)
            except Exception as error:
                found.append(error)

    with serving(Settings(drain_seconds=0.2)) as server, saying(chunk(Content("Yes")), PATIENCE) as begun:
        threads = [threading.Thread(target=wait, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        until(lambda: len(begun) == 2)
        server.server.should_exit = True
        for thread in threads:
            thread.join()
    own = {"openai": openai.APIError, "anthropic": anthropic.APIStatusError, "ollama": ollama.ResponseError}
    assert len(found) == 2
    for error in found:
        assert isinstance(error, own[kind])
        assert "the server is stopping" in str(error)
    assert 503 in [getattr(error, "status_code", None) for error in found]
    assert all(stream.was_closed for stream in begun)


# --- errors with real causes --------------------------------------------------------------------------------


def test_limits_of_keys(tmp_path: Path) -> None:
    from gemlet.server.keys import KeyStore, Limits
    from gemlet.server.settings import Settings

    path = str(tmp_path / "keys.db")
    store = KeyStore(path, create=True)
    minute = store.create("minute", Limits(requests_per_minute=1, tokens_per_minute=1000))
    day = store.create("day", Limits(tokens_per_day=1))
    store.close()
    with serving(Settings(keys=path, max_body=100_000)) as server:
        with client_of(server, "openai", minute) as client:
            OF_OPENAI["chat"][0](client, max_tokens=1)
            with pytest.raises(openai.RateLimitError) as error:
                OF_OPENAI["chat"][0](client)
            headers = error.value.response.headers
            assert 1 <= int(headers["retry-after"]) <= 62
            assert headers["x-ratelimit-limit-requests"] == "1"
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert float(headers["x-ratelimit-reset-requests"].removesuffix("s")) > 0
            assert "x-should-retry" not in headers
        with client_of(server, "anthropic", minute) as client:
            with pytest.raises(anthropic.RateLimitError) as error:
                OF_ANTHROPIC["messages"][0](client)
            headers = error.value.response.headers
            assert headers["anthropic-ratelimit-requests-limit"] == "1"
            assert headers["anthropic-ratelimit-tokens-limit"] == "1000"
            assert headers["anthropic-ratelimit-requests-reset"].endswith("Z")
        # If the client retried this request, it would sleep for a day.
        with client_of(server, "anthropic", day, max_retries=2) as client:
            OF_ANTHROPIC["messages"][0](client)
            with pytest.raises(anthropic.RateLimitError) as error:
                OF_ANTHROPIC["messages"][0](client)
            assert int(error.value.response.headers["retry-after"]) > 3600
            assert error.value.response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("kind", ["openai", "anthropic", "ollama"])
@pytest.mark.parametrize(("key", "status"), [("none", 401), (None, 413)])
def test_large_requests_that_are_refused(tmp_path: Path, kind: str, key: str | None, status: int) -> None:
    """The server answers while the client is still sending."""
    from gemlet.server.keys import KeyStore
    from gemlet.server.settings import Settings

    path = str(tmp_path / "keys.db")
    store = KeyStore(path, create=True)
    key = key or store.create("a")
    store.close()
    large: Any = {**ASKED, "messages": [{"role": "user", "content": "x" * 20_000_000}]}
    asks: dict[str, Callable[[Any], Any]] = {
        "openai": lambda client: client.chat.completions.create(**large),
        "anthropic": lambda client: client.messages.create(**large, max_tokens=2),
        "ollama": lambda client: client.chat(**large),
    }
    own = {"openai": openai.APIError, "anthropic": anthropic.APIError, "ollama": ollama.ResponseError}
    with (
        serving(Settings(keys=path, max_body=1_000_000)) as server,
        client_of(server, kind, key) as client,
        pytest.raises(own[kind]) as error,
    ):
        asks[kind](client)
    assert getattr(error.value, "status_code", None) == status, error.value


def test_content_that_cannot_be_read(tmp_path: Path) -> None:
    """Reading the file fails after the server has announced the length of the content. The server closes the
    connection, so the client raises an error and does not wait for the rest."""
    from gemlet.server.settings import Settings

    async def broken(place: Path) -> Any:
        yield b"half"
        raise OSError(5, "Input/output error")

    with serving(Settings(data=str(tmp_path / "data"))) as server, client_of(server, "openai") as client:
        file = client.files.create(file=("a.jsonl", b"x" * 100_000), purpose="batch")
        assert len(client.files.content(file.id).read()) == 100_000
        breaks = mock.patch("gemlet.server.openai_files._pieces", broken)
        with breaks, pytest.raises(openai.APIConnectionError):
            client.with_options(timeout=20).files.content(file.id)
        assert client.files.retrieve(file.id).bytes == 100_000


def test_a_file_in_use(tmp_path: Path) -> None:
    from gemlet.server.settings import Settings

    line = '{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "The"}}'
    settings = Settings(data=str(tmp_path / "data"))
    with (
        serving(settings) as server,
        saying(PATIENCE),
        client_of(
            server,
            "openai",
        ) as client,
    ):
        file = client.files.create(file=("a.jsonl", line.encode()), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="1h"
        )
        with pytest.raises(openai.ConflictError) as error:
            client.with_options(max_retries=2).files.delete(file.id)
        assert error.value.code == "file_in_use"
        assert error.value.response.headers["x-should-retry"] == "false"
        client.batches.cancel(batch.id)
