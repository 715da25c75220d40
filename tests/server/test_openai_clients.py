"""Tests of the server with OpenAI's official client, synchronous and asynchronous: chat, completions and
models, with whole and streamed replies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import gemlet
from support.extras import optional
from support.servers import RunningServer

openai = optional("openai")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]


@pytest.fixture(scope="module")
def expected() -> gemlet.Generation:
    with gemlet.load() as model:
        return model.chat(QUESTION, max_tokens=12, seed=12)


@pytest.fixture
def client(server: RunningServer) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(client: Any, expected: gemlet.Generation) -> None:
    reply = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=12, seed=12)
    assert reply.choices[0].message.content == expected.text
    assert reply.choices[0].finish_reason == expected.finish_reason == "length"
    assert reply.usage.prompt_tokens == expected.prompt_tokens
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == expected.prompt_tokens + 12
    assert reply.object == "chat.completion"


def test_chat_streamed(client: Any, expected: gemlet.Generation) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=QUESTION,
        max_completion_tokens=12,
        seed=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert {chunk.usage for chunk in chunks} == {None}
    assert last.choices == []
    assert last.usage.completion_tokens == 12


def test_a_stream_has_no_usage_unless_asked_for(client: Any) -> None:
    chunks = list(client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=3, stream=True))
    assert all(chunk.choices and "usage" not in chunk.model_fields_set for chunk in chunks)


def test_several_replies(client: Any) -> None:
    reply = client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=8, seed=12, n=3)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in reply.choices]
    alone = [
        client.chat.completions.create(model="demo", messages=QUESTION, max_tokens=8, seed=seed)
        .choices[0]
        .message.content
        for seed in (12, 13, 14)
    ]
    assert texts == alone
    assert reply.usage.completion_tokens == 24
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(
        model="demo", messages=QUESTION, max_tokens=8, seed=12, n=3, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == alone


def test_several_replies_need_one_prefill(client: Any, server: RunningServer) -> None:
    (_, model), *_ = server.server.app.service.models.loaded
    asked: Any = [{"role": "user", "content": "Why does the sea come and go, and who told the moon? " * 48}]
    before = model.stats()["prompt_tokens"]
    reply = client.chat.completions.create(model="demo", messages=asked, max_tokens=4, n=8)
    read = model.stats()["prompt_tokens"] - before
    assert len(reply.choices) == 8
    # The prefix cache keeps only whole blocks. Each reply computes the rest of the prompt again.
    assert 600 < read < 3 * reply.usage.prompt_tokens


def test_async(server: RunningServer, expected: gemlet.Generation) -> None:
    async def ask() -> tuple[str, str, list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            options: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 12, "seed": 12}
            whole = await client.chat.completions.create(**options)
            text = ""
            async for chunk in await client.chat.completions.create(**options, stream=True):
                text += chunk.choices[0].delta.content or ""
            together = await asyncio.gather(*(client.chat.completions.create(**options) for _ in range(8)))
            return whole.choices[0].message.content, text, [r.choices[0].message.content for r in together]

    whole, streamed, together = asyncio.run(ask())
    assert whole == streamed == expected.text
    assert together == [expected.text] * 8


def test_completions(client: Any) -> None:
    with gemlet.load() as model:
        expected = model.generate("The door opened", max_tokens=10, seed=1)
        second = model.generate("She said", max_tokens=10, seed=1)
    reply = client.completions.create(model="demo", prompt="The door opened", max_tokens=10, seed=1)
    assert reply.choices[0].text == expected.text
    assert reply.usage.prompt_tokens == expected.prompt_tokens
    both = client.completions.create(
        model="demo", prompt=["The door opened", "She said"], max_tokens=10, seed=1
    )
    assert [choice.text for choice in both.choices] == [expected.text, second.text]
    assert both.usage.prompt_tokens == expected.prompt_tokens + second.prompt_tokens
    chunks = list(
        client.completions.create(
            model="demo",
            prompt="The door opened",
            max_tokens=10,
            seed=1,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 10


def test_token_ids_as_prompt(client: Any, server: RunningServer) -> None:
    ids = server.post("/tokenize", {"prompt": "The door opened"}).json["tokens"]
    text = client.completions.create(model="demo", prompt="The door opened", max_tokens=6, seed=1)
    of_ids = client.completions.create(model="demo", prompt=ids, max_tokens=6, seed=1)
    assert of_ids.choices[0].text == text.choices[0].text


def test_by_default_a_completion_has_16_tokens(client: Any) -> None:
    reply = client.completions.create(model="demo", prompt="The door opened", extra_body={"ignore_eos": True})
    assert reply.usage.completion_tokens == 16


def test_stop(client: Any, expected: gemlet.Generation) -> None:
    word = expected.text.split()[2]
    for stop in (word, [word, "never"]):
        reply = client.chat.completions.create(
            model="demo", messages=QUESTION, max_tokens=12, seed=12, stop=stop
        )
        assert reply.choices[0].message.content == expected.text[: expected.text.index(word)]
        assert reply.choices[0].finish_reason == "stop"


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-9")
    assert error.value.code == "model_not_found"


def test_errors_have_openais_form(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=QUESTION)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="demo", messages=QUESTION, temperature=-1)
    assert error.value.param == "temperature"
    assert error.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="demo", prompt="word " * 3000)
    assert error.value.code == "context_length_exceeded"
