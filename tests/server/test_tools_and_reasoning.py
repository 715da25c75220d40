"""Tests of tool calls and thoughts with the clients of each dialect: receiving them and sending them back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gemlet.chat import Content, MalformedToolCall, Reasoning, ToolCall
from support.extras import optional
from support.scripted_streams import ScriptedStream, chunk, saying
from support.servers import RunningServer

openai, anthropic, ollama = map(optional, ("openai", "anthropic", "ollama"))
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
QUESTION: Any = [{"role": "user", "content": "What is the weather?"}]
FIRST, SECOND = ToolCall("weather", {"city": "Zürich"}), ToolCall("now", {})
STEPS = [
    chunk(Reasoning("Let me ")),
    chunk(Reasoning("see.")),
    chunk(Content("I ask.")),
    chunk(FIRST),
    chunk(SECOND, reason="stop"),
]
FUNCTION = {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


@pytest.fixture
def said() -> Iterator[list[ScriptedStream]]:
    with saying(*STEPS) as begun:
        yield begun


@pytest.fixture
def ask(server: RunningServer) -> Any:
    """OpenAI's ``chat.completions.create``."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        def create(**more: Any) -> Any:
            return client.chat.completions.create(model="demo", messages=QUESTION, **more)

        yield create


def test_openai(said: list[ScriptedStream], ask: Any) -> None:
    choice = ask(tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I ask."
    assert choice.message.reasoning == choice.message.reasoning_content == "Let me see."
    calls = choice.message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "now"]
    assert json.loads(calls[0].function.arguments) == {"city": "Zürich"}
    assert [call.id for call in calls] == [FIRST.id, SECOND.id]


def test_openai_streamed(said: list[ScriptedStream], ask: Any) -> None:
    *chunks, last = list(ask(tools=TOOLS, stream=True, stream_options={"include_usage": True}))
    deltas = [part.choices[0].delta for part in chunks]
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == "Let me see."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Let me see."
    assert "".join(delta.content or "" for delta in deltas) == "I ask."
    pieces = [piece for delta in deltas for piece in delta.tool_calls or ()]
    assert [(piece.index, piece.id) for piece in pieces if piece.id] == [(0, FIRST.id), (1, SECOND.id)]
    arguments = {0: "", 1: ""}
    for piece in pieces:
        arguments[piece.index] += piece.function.arguments or ""
    assert json.loads(arguments[0]) == {"city": "Zürich"}
    assert json.loads(arguments[1]) == {}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert last.usage.completion_tokens_details.reasoning_tokens == 2


def test_only_one_call_without_parallel_tool_calls(said: list[ScriptedStream], ask: Any) -> None:
    reply = ask(tools=TOOLS, parallel_tool_calls=False)
    assert len(reply.choices[0].message.tool_calls) == 1
    assert reply.choices[0].finish_reason == "tool_calls"
    assert said[0].was_cancelled
    chunks = list(ask(tools=TOOLS, parallel_tool_calls=False, stream=True))
    indices = {piece.index for part in chunks for piece in part.choices[0].delta.tool_calls or ()}
    assert indices == {0}
    assert [part.choices[0].finish_reason for part in chunks if part.choices[0].finish_reason] == [
        "tool_calls"
    ]


def test_a_malformed_call_becomes_text(ask: Any) -> None:
    with saying(
        chunk(MalformedToolCall("call:x{", "cut off"), Content("<|tool_call>call:x{"), reason="length")
    ):
        choice = ask(tools=TOOLS).choices[0]
    assert choice.message.content == "<|tool_call>call:x{"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "length"


@pytest.mark.extra("grammar")
def test_tool_choice(server: RunningServer, ask: Any) -> None:
    for choice in ("none", "auto"):
        assert ask(tools=TOOLS, tool_choice=choice, max_tokens=1).choices
    with pytest.raises(openai.BadRequestError, match="there is no tool 'other'") as error:
        ask(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "other"}})
    assert error.value.param == "tool_choice"


@pytest.mark.extra("grammar")
def test_a_forced_call(server: RunningServer, ask: Any) -> None:
    """In every dialect, a forced call works even with a model that would not call a tool by itself."""
    city = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
        "required": ["city"],
    }
    tools: Any = [{"type": "function", "function": {**FUNCTION, "parameters": city}}]
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        reply = ask(tools=tools, tool_choice=choice, max_tokens=60).choices[0]
        (call,) = reply.message.tool_calls
        assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
        assert reply.finish_reason == "tool_calls"
    body: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 60}
    body["tools"] = [{"name": "weather", "input_schema": city}]
    for asked in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        message = server.post("/v1/messages", {**body, "tool_choice": asked}).json
        assert message["content"][-1]["input"]["city"] in ("Oslo", "Rome")
        assert message["stop_reason"] == "tool_use"
    flat = {"type": "function", "name": "weather", "parameters": city}
    response = server.post("/v1/responses", {"input": "?", "tools": [flat], "tool_choice": "required"}).json
    assert response["output"][-1]["type"] == "function_call"


def test_thinking(server: RunningServer, ask: Any) -> None:
    """The demo model cannot think, so a request for thoughts gets an error."""
    for more in (
        {"reasoning_effort": "high"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
    ):
        with pytest.raises(openai.BadRequestError) as error:
            ask(max_tokens=1, **more)
        assert error.value.code == "unsupported"
    for effort in ("none", "minimal"):
        assert ask(max_tokens=1, reasoning_effort=effort).choices
    with pytest.raises(openai.BadRequestError, match="contradict"):
        ask(reasoning_effort="none", extra_body={"chat_template_kwargs": {"enable_thinking": True}})


def test_the_chat_format_gets_the_messages_that_clients_send_back(server: RunningServer) -> None:
    """The dialects have different names for the reasoning, but the chat format gets it under one name. The
    empty fields in the messages of OpenAI's client change nothing."""
    from gemlet.server.openai_chat import as_said

    message = {"role": "assistant", "content": "x", "reasoning": "a", "reasoning_content": "a"}
    assert "reasoning_content" not in as_said([message])[0]
    assert as_said([{**message, "reasoning": None}])[0]["reasoning_content"] == "a"
    for extra in ({"reasoning": "a"}, {"reasoning_content": "a"}, {"refusal": None, "audio": None}):
        messages = [*QUESTION, {"role": "assistant", "content": "It rains.", **extra}, *QUESTION]
        answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
        assert answer.status == 200
    for wrong in ({"reasoning": ["a"]}, {"reasoning_content": 5}, {"function_call": {"name": "f"}}):
        messages = [*QUESTION, {"role": "assistant", "content": "It rains.", **wrong}, *QUESTION]
        for path in ("/v1/chat/completions", "/tokenize"):
            answer = server.post(path, {"messages": messages})
            assert answer.status == 400
            assert answer.error["param"] == f"messages[{len(QUESTION)}].{next(iter(wrong))}"


def test_anthropic(said: list[ScriptedStream], server: RunningServer) -> None:
    tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
    options: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 50, "tools": tools}
    options["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(**options)
        with client.messages.stream(**options) as stream:
            streamed = stream.get_final_message()
    for found in (message, streamed):
        assert [block.type for block in found.content] == ["thinking", "text", "tool_use", "tool_use"]
        assert found.content[0].thinking == "Let me see."
        assert found.content[1].text == "I ask."
        assert found.content[2].input == {"city": "Zürich"}
        assert found.content[3].input == {}
        assert found.content[2].id == FIRST.id
        assert found.stop_reason == "tool_use"


def test_a_conversation_of_anthropic() -> None:
    from gemlet.server.anthropic_messages import _conversation

    found = _conversation(
        [
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "text", "text": "I ask."},
                    {"type": "tool_use", "id": "1", "name": "weather", "input": {"city": "Oslo"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "1",
                        "content": [{"type": "text", "text": "Rain"}],
                    },
                    {"type": "text", "text": "And?"},
                ],
            },
        ]
    )
    function = {"name": "weather", "arguments": {"city": "Oslo"}}
    assert found == [
        {
            "role": "assistant",
            "content": "I ask.",
            "reasoning": "Hm.",
            "tool_calls": [{"id": "1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "Rain"}]},
        {"role": "user", "content": [{"type": "text", "text": "And?"}]},
    ]


def test_ollama(said: list[ScriptedStream], server: RunningServer) -> None:
    client = ollama.Client(host=server.url)
    message = client.chat(model="demo", messages=QUESTION, tools=TOOLS, think=True).message
    assert (message.content, message.thinking) == ("I ask.", "Let me see.")
    assert [(call.function.name, dict(call.function.arguments)) for call in message.tool_calls] == [
        ("weather", {"city": "Zürich"}),
        ("now", {}),
    ]
    parts = list(client.chat(model="demo", messages=QUESTION, tools=TOOLS, stream=True))
    assert "".join(part.message.thinking or "" for part in parts) == "Let me see."
    calls = [call.function.name for part in parts for call in part.message.tool_calls or ()]
    assert calls == ["weather", "now"]
    assert parts[-1].done
    client.close()
