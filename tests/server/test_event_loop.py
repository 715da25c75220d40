"""Long work for one request does not hold up other requests: the server answers them meanwhile."""

from __future__ import annotations

import base64
import io
import threading
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
        assert answered.wait(PATIENCE), "the event loop waits for this"
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
def test_while_a_picture_is_read(tmp_path_factory: pytest.TempPathFactory) -> None:
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
def test_while_a_grammar_is_compiled(server: RunningServer, more: dict[str, Any]) -> None:
    with answering_during(server, requests, "compile_grammar"):
        assert server.post(CHAT, {**QUESTION, **more}).status == 200


def test_while_a_long_text_is_encoded_or_decoded(server: RunningServer) -> None:
    with answering_during(server, requests.Requests, "replies"):
        long = {"role": "user", "content": "a door " * 5000}
        assert server.post(CHAT, {**QUESTION, "messages": [long]}).status == 400  # too long for the context
    with answering_during(server, gemlet.Tokenizer, "decode"):
        assert server.post("/detokenize", {"tokens": [5] * 1000}).status == 200


def test_while_the_fields_of_a_large_body_are_checked(server: RunningServer) -> None:
    from gemlet.server import service

    for name in ("parse", "read"):
        with answering_during(server, service, name):
            assert server.post("/detokenize", {"tokens": [5] * 50_000}).status == 200


def test_no_text_is_encoded_that_fits_no_context(server: RunningServer) -> None:
    for body in (
        {"prompt": "a" * (1 << 20) + "a"},
        {"messages": [{"role": "user", "content": "a" * (1 << 20) + "a"}]},
        {"messages": [{"role": "user", "content": "a"}] * ((1 << 16) + 1)},
    ):
        with mock.patch.object(gemlet.Tokenizer, "_parts", side_effect=AssertionError):
            assert server.post("/tokenize", body).status == 400
