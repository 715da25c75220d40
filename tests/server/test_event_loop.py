"""Tests that the server answers other requests while one request needs long work."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest

import gemlet
from gemlet.model import requests
from gemlet.model.senses import Senses
from support.extras import optional
from support.pace import in_time
from support.servers import RunningServer, serving
from support.vision import write_with_vocabulary
from support.waiting import PATIENCE

pytestmark = pytest.mark.extra("serve")
CHAT = "/v1/chat/completions"
QUESTION: Any = {"messages": [{"role": "user", "content": "Who?"}], "max_tokens": 2}


@contextmanager
def answering_during(server: RunningServer, owner: object, name: str) -> Iterator[None]:
    """Makes ``owner.name`` wait until the server has answered another request."""
    real = getattr(owner, name)
    begun, answered = threading.Event(), threading.Event()

    def waiting(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert answered.wait(PATIENCE), f"the event loop waited for {name} and answered no other request"
        return real(*arguments, **named)

    def ask() -> None:
        if begun.wait(2 * PATIENCE) and server.ask("GET", "/health").status == 200:
            answered.set()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with mock.patch.object(owner, name, waiting):
            yield
    finally:
        thread.join()
    assert begun.is_set()


@pytest.mark.extra("vision")
def test_others_are_answered_while_an_image_is_decoded(tmp_path_factory: pytest.TempPathFactory) -> None:
    from gemlet.server.settings import ModelSpec

    out = io.BytesIO()
    optional("PIL.Image").fromarray(np.zeros((40, 60, 3), np.uint8)).save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    said = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    folder = write_with_vocabulary(tmp_path_factory.mktemp("sees"))
    with serving(specs=[ModelSpec("sees", str(folder))]) as server:
        for more in ({}, {"stream": True}):
            with answering_during(server, Senses, "placed"):
                assert server.post(CHAT, {**QUESTION, "messages": said, **more}).status == 200


@pytest.mark.extra("grammar")
@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"regex": "a+"}},
        {
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "tool_choice": "required",
        },
    ],
)
def test_others_are_answered_while_a_grammar_is_compiled(server: RunningServer, more: dict[str, Any]) -> None:
    with answering_during(server, requests, "compile_grammar"):
        assert server.post(CHAT, {**QUESTION, **more}).status == 200


def test_others_are_answered_while_a_long_text_is_encoded(server: RunningServer) -> None:
    with answering_during(server, requests.Requests, "replies"):
        long = {"role": "user", "content": "a door " * 5000}
        assert server.post(CHAT, {**QUESTION, "messages": [long]}).status == 400  # too long for the context
    with answering_during(server, gemlet.Tokenizer, "decode"):
        assert server.post("/detokenize", {"tokens": [5] * 1000}).status == 200


def test_others_are_answered_while_a_large_body_is_checked(server: RunningServer) -> None:
    from gemlet.server import service

    for name in ("parse", "read"):
        with answering_during(server, service, name):
            assert server.post("/detokenize", {"tokens": [5] * 50_000}).status == 200


def test_a_text_that_is_too_long_for_the_context_is_not_encoded(server: RunningServer) -> None:
    for body in (
        {"prompt": "a" * (1 << 20) + "a"},
        {"messages": [{"role": "user", "content": "a" * (1 << 20) + "a"}]},
        {"messages": [{"role": "user", "content": "a"}] * ((1 << 16) + 1)},
    ):
        with mock.patch.object(gemlet.Tokenizer, "_parts", side_effect=AssertionError):
            assert server.post("/tokenize", body).status == 400


# --- bodies with many small values --------------------------------------------------------------------------

USER = {"role": "user", "content": "a"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}" + " " * 60}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 60}}
MANY: dict[str, tuple[str, Any]] = {
    "messages": (CHAT, {"messages": [USER] * 60_000}),
    "calls": (
        CHAT,
        {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL] * 60_000}]},
    ),
    "blocks": (
        "/v1/messages",
        {"model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": [IMAGE] * 4000}] * 20},
    ),
    "items": (
        "/v1/responses",
        {"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": " " * 90}] * 60_000},
    ),
    "pictures": ("/api/chat", {"model": "demo", "messages": [{**USER, "images": ["A" * 64] * 64}] * 4000}),
    "one picture each": (
        "/api/chat",
        {"model": "demo", "messages": [{**USER, "images": ["A" * 64]}] * 50_000},
    ),
    "ids": ("/v1/completions", {"prompt": [5] * 1_000_000}),
    "names": (CHAT, {"messages": [USER], "logit_bias": {str(i): 1 for i in range(500_000)}}),
    "texts": ("/v1/embeddings", {"input": ["a b " * 20] * 50_000}),
    "log probabilities": (
        "/v1/completions",
        {"prompt": "The", "max_tokens": 400, "n": 16, "ignore_eos": True, "logprobs": 20},
    ),
    "log probabilities of a chat": (
        CHAT,
        {
            "messages": [USER],
            "max_tokens": 200,
            "n": 16,
            "ignore_eos": True,
            "logprobs": True,
            "top_logprobs": 20,
        },
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_no_request_blocks_the_event_loop(server: RunningServer, name: str) -> None:
    """Measures the processor time that the event loop's thread takes between two turns of the loop."""
    path, body = MANY[name]
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.thread_time()
            longest, last = max(longest, now - last), now

    loop = server.server.servers[0].get_loop()
    # Other processes may slow a measurement down, so one quick measurement of three is enough.
    for _ in range(3):
        longest = 0.0
        watching = asyncio.run_coroutine_threadsafe(watch(), loop)
        try:
            assert server.post(path, body).status in (200, 400)
        finally:
            watching.cancel()
        if in_time(longest, 0.05):
            return
    raise AssertionError(f"the event loop was blocked for {longest} s")


def test_vectors_are_converted_to_json_in_another_thread() -> None:
    from gemlet.server import answers, service

    here: list[int] = []
    real = answers.as_line_in_pieces

    def noting(value: object) -> bytes:
        here.append(threading.get_ident())
        return real(value)

    async def ask() -> Any:
        import anyio

        made = mock.Mock(threads=anyio.CapacityLimiter(1))
        with mock.patch.object(service, "as_line_in_pieces", noting):
            return await service.Service.line(made, lambda: {"a": [0.5] * 10}, is_large=True)

    assert asyncio.run(ask()) == b'{"a":[0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5,0.5]}'
    assert here != [threading.get_ident()]
