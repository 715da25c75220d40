"""Tests of the server with Anthropic's official client, synchronous and asynchronous: whole and streamed
messages, token counts and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import gemlet
from support.extras import optional
from support.servers import RunningServer

anthropic = optional("anthropic")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
QUESTION: Any = [{"role": "user", "content": "Who is there?"}]
# The method for messages has no argument for the temperature any more.
GREEDY: Any = {"extra_body": {"temperature": 0}}


@pytest.fixture
def client(server: RunningServer) -> Any:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def greedy() -> gemlet.Generation:
    with gemlet.load() as model:
        return model.chat(QUESTION, max_tokens=12, temperature=0)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content)


def test_a_message(client: Any, greedy: gemlet.Generation) -> None:
    message = client.messages.create(model="demo", messages=QUESTION, max_tokens=12, **GREEDY)
    assert text_of(message) == greedy.text
    assert message.role == "assistant"
    assert message.stop_reason == {"stop": "end_turn", "length": "max_tokens"}[greedy.finish_reason]
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens == greedy.prompt_tokens
    assert usage.output_tokens == greedy.completion_tokens


def test_a_stream(client: Any, greedy: gemlet.Generation) -> None:
    with client.messages.stream(model="demo", messages=QUESTION, max_tokens=12, **GREEDY) as stream:
        assert "".join(stream.text_stream) == greedy.text
        message = stream.get_final_message()
    assert text_of(message) == greedy.text
    assert message.usage.output_tokens == greedy.completion_tokens
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == greedy.prompt_tokens
    events = client.messages.create(model="demo", messages=QUESTION, max_tokens=12, stream=True, **GREEDY)
    kinds = [event.type for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_async(server: RunningServer, greedy: gemlet.Generation) -> None:
    async def ask() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as client:
            options: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 12, **GREEDY}
            whole = await client.messages.create(**options)
            async with client.messages.stream(**options) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            return text_of(whole), text

    assert asyncio.run(ask()) == (greedy.text, greedy.text)


def test_system_blocks_and_the_given_beginning_of_a_reply(client: Any) -> None:
    conversation = [
        {"role": "user", "content": [{"type": "text", "text": "Who is there?"}]},
        {"role": "assistant", "content": "It was"},
    ]
    with gemlet.load() as model:
        expected = model.chat(
            [{"role": "system", "content": "Be brief."}, *conversation],
            continue_final_message=True,
            max_tokens=8,
            temperature=0,
        )
    for system in (
        "Be brief.",
        [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    ):
        message = client.messages.create(
            model="demo", system=system, messages=conversation, max_tokens=8, **GREEDY
        )
        assert text_of(message) == expected.text


def test_stop_sequences(client: Any, greedy: gemlet.Generation) -> None:
    word = greedy.text.split()[1]
    message = client.messages.create(
        model="demo", messages=QUESTION, max_tokens=12, **GREEDY, stop_sequences=["never", word]
    )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", word)
    assert text_of(message) == greedy.text[: greedy.text.index(word)]


def test_counting(client: Any, greedy: gemlet.Generation) -> None:
    counted = client.messages.count_tokens(model="demo", messages=QUESTION)
    assert counted.input_tokens == greedy.prompt_tokens


def test_tools_as_new_clients_describe_them(client: Any) -> None:
    tool = {"name": "now", "input_schema": {"type": "object"}}
    asked: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 1}
    plain = {"strict": True, "eager_input_streaming": True, "allowed_callers": ["direct"]}
    assert client.messages.create(tools=[{**tool, **plain, "defer_loading": False}], **asked).content
    for more in ({"input_examples": [{}]}, {"defer_loading": True}, {"allowed_callers": ["code"]}):
        with pytest.raises(anthropic.BadRequestError, match=next(iter(more))):
            client.messages.create(tools=[{**tool, **more}], **asked)


def test_tools_that_the_client_runs(client: Any) -> None:
    """The client first asks the server to store the conversation. The server refuses, so the client sends all
    messages with every request."""

    @anthropic.beta_tool
    def now() -> str:
        """The time."""
        return "noon"

    runner = client.beta.messages.tool_runner(model="demo", max_tokens=2, tools=[now], messages=QUESTION)
    assert [message.stop_reason for message in runner] == ["max_tokens"]


def test_a_system_message_between_other_messages(client: Any, server: RunningServer) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    conversation = [*QUESTION, {"role": "assistant", "content": "I am."}, system, *QUESTION]
    asked: Any = {"model": "demo", "messages": conversation, "max_tokens": 8}
    reply = client.messages.create(**asked, **GREEDY)
    same = server.post("/v1/chat/completions", {**asked, "temperature": 0}).json
    assert text_of(reply) == same["choices"][0]["message"]["content"]


def test_every_effort_is_accepted(client: Any) -> None:
    for effort in ("low", "medium", "high", "xhigh", "max"):
        assert client.messages.create(
            model="demo", messages=QUESTION, max_tokens=1, output_config={"effort": effort}
        ).content


def test_errors(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-9", messages=QUESTION, max_tokens=5)
    assert missing.value.body["error"]["type"] == "not_found_error"
    assert missing.value.request_id.startswith("req_")
    image = {"type": "image", "source": {"type": "url", "url": "http://localhost/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match="image"):
        client.messages.create(model="demo", messages=[{"role": "user", "content": [image]}], max_tokens=5)
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        client.messages.create(
            model="demo", messages=QUESTION, max_tokens=5, tool_choice={"type": "any"}, tools=[]
        )
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model="demo", messages=QUESTION, max_tokens=0)


def test_models(client: Any) -> None:
    (found,) = client.models.list()
    assert (found.id, found.type, found.display_name) == ("demo", "model", "demo")
    assert found.created_at.year > 2020
    assert client.models.retrieve("demo").max_input_tokens > 0
    with pytest.raises(anthropic.NotFoundError) as error:
        client.models.retrieve("claude")
    assert (error.value.type, error.value.error_code) == ("not_found_error", "model_not_found")
    assert error.value.request_id.startswith("req_")


@pytest.mark.extra("grammar")
def test_the_older_field_for_an_output_format(client: Any) -> None:
    form = {"type": "json_schema", "schema": {"enum": [5]}}
    said: Any = {"model": "demo", "max_tokens": 9, "messages": [{"role": "user", "content": "Who?"}]}
    reply = client.messages.create(**said, extra_body={"output_format": form})
    assert reply.content[0].text == "5"
    both = {"output_format": form, "output_config": {"format": form}}
    with pytest.raises(anthropic.BadRequestError, match="one of them"):
        client.messages.create(**said, extra_body=both)
