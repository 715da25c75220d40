"""Tests of the server with Ollama's client, synchronous and asynchronous: the methods chat, generate, list,
show and ps, with whole and streamed replies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import gemlet
from support.extras import optional
from support.servers import RunningServer

ollama = optional("ollama")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
OPTIONS = {"temperature": 0, "num_predict": 12, "num_ctx": 512}


@pytest.fixture
def client(server: RunningServer) -> Any:
    client = ollama.Client(host=server.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def greedy() -> gemlet.Generation:
    with gemlet.load() as model:
        return model.chat(QUESTION, max_tokens=12, temperature=0)


def test_chat(client: Any, greedy: gemlet.Generation) -> None:
    for name in ("demo", "demo:latest"):
        reply = client.chat(model=name, messages=QUESTION, options=OPTIONS)
        assert reply.message.content == greedy.text
        assert reply.done
        assert reply.done_reason == greedy.finish_reason
        assert reply.model == name
        assert (reply.prompt_eval_count, reply.eval_count) == (greedy.prompt_tokens, greedy.completion_tokens)
        assert reply.total_duration > reply.eval_duration >= 0


def test_chat_streamed(client: Any, greedy: gemlet.Generation) -> None:
    *parts, last = list(client.chat(model="demo", messages=QUESTION, options=OPTIONS, stream=True))
    assert "".join(part.message.content for part in parts) == greedy.text
    assert not any(part.done for part in parts)
    assert last.done
    assert last.eval_count == greedy.completion_tokens


def test_generate(client: Any, greedy: gemlet.Generation) -> None:
    """The server puts the chat format around the prompt, unless ``raw`` is true."""
    reply = client.generate(model="demo", prompt="Who is there?", options=OPTIONS)
    assert reply.response == greedy.text
    with gemlet.load() as model:
        expected = model.generate("The door opened", max_tokens=12, temperature=0)
    raw = client.generate(model="demo", prompt="The door opened", raw=True, options=OPTIONS)
    assert raw.response == expected.text
    parts = client.generate(model="demo", prompt="The door opened", raw=True, options=OPTIONS, stream=True)
    assert "".join(part.response for part in parts) == expected.text
    assert client.generate(model="demo").done_reason == "load"
    loaded = client.chat(model="demo", messages=[])
    assert (loaded.done_reason, loaded.message.content) == ("load", "")
    reply = client.generate(model="demo", prompt="Who is there?", format="", options=OPTIONS)
    assert reply.response == greedy.text


def test_async(server: RunningServer, greedy: gemlet.Generation) -> None:
    async def ask() -> tuple[str, str]:
        async with ollama.AsyncClient(host=server.url) as client:
            whole = await client.chat(model="demo", messages=QUESTION, options=OPTIONS)
            text = ""
            async for part in await client.chat(
                model="demo", messages=QUESTION, options=OPTIONS, stream=True
            ):
                text += part.message.content
            return whole.message.content, text

    assert asyncio.run(ask()) == (greedy.text, greedy.text)


def test_models(client: Any, server: RunningServer) -> None:
    (model,) = client.list().models
    assert model.model == "demo"
    assert model.details.family == "gemma3"
    assert [running.model for running in client.ps().models] == ["demo"]
    shown = client.show("demo")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo["gemma3.context_length"] == 1024
    assert server.ask("GET", "/api/version").json["version"] == gemlet.__version__


def test_errors(client: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="no model of this name") as error:
        client.chat(model="llama3", messages=QUESTION)
    assert error.value.status_code == 404
    for more in (
        {"options": {"num_ctx": 10**6}},
        {"options": {"mirostat": 2}},
        {"options": {"num_predict": -3}},
        {"options": {"temprature": 1}},
    ):
        with pytest.raises(ollama.ResponseError) as refused:
            client.chat(model="demo", messages=QUESTION, **more)
        assert refused.value.status_code == 400
        assert next(iter(more.get("options", more))) in str(refused.value)
