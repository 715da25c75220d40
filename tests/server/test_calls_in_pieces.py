"""Tests of tool calls in streams: the server sends the arguments of a call in pieces while the model
generates them. The pieces together equal the arguments of the whole call."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gemlet.chat import Content, MalformedToolCall, ToolCall, ToolCallPiece
from support.extras import optional
from support.scripted_streams import chunk, saying
from support.servers import RunningServer, serving

openai, anthropic = map(optional, ("openai", "anthropic"))
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
QUESTION: Any = [{"role": "user", "content": "What is the weather?"}]
FIRST, SECOND = ToolCall("weather", {"city": "Zürich", "days": [1, 2]}), ToolCall("now", {})
PIECES = ['{"city": ', '"Zü', 'rich", "days": [1', ", 2]", "}"]
FUNCTION: Any = {"name": "weather", "description": "", "parameters": {"type": "object", "properties": {}}}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


def pieces_of(call: ToolCall, *arguments: str) -> list[ToolCallPiece]:
    return [ToolCallPiece(call.name, text, call.id) for text in ("", *arguments)]


NAME, *ARGUMENTS = pieces_of(FIRST, *PIECES)
STEPS = [
    chunk(Content("I ask."), NAME),
    *map(chunk, ARGUMENTS[:-1]),
    chunk(ARGUMENTS[-1], FIRST, *pieces_of(SECOND)),
    chunk(*pieces_of(SECOND, "{", "}")[1:], SECOND, reason="stop"),
]
CUT = [
    chunk(*pieces_of(FIRST, '{"city": ')),
    chunk(
        MalformedToolCall("call:weather{city:", "cut off", FIRST.id),
        Content("<|tool_call>call:weather{city:"),
        reason="length",
    ),
]


@pytest.fixture
def chat(server: RunningServer) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        def create(**more: Any) -> Any:
            return client.chat.completions.create(
                model="demo", messages=QUESTION, tools=TOOLS, stream=True, **more
            )

        yield create


def test_openai(chat: Any) -> None:
    with saying(*STEPS):
        deltas = [part.choices[0].delta for part in chat()]
    assert "".join(delta.content or "" for delta in deltas) == "I ask."
    pieces = [piece for delta in deltas for piece in delta.tool_calls or ()]
    begun = [(piece.index, piece.id, piece.function.name) for piece in pieces if piece.id]
    assert begun == [(0, FIRST.id, "weather"), (1, SECOND.id, "now")]
    assert [p.function.arguments for p in pieces if p.index == 0] == ["", *PIECES]
    assert [p.function.arguments for p in pieces if p.index == 1] == ["", "{", "}"]


def test_only_one_call_without_parallel_tool_calls(chat: Any) -> None:
    with saying(*STEPS):
        parts = [part.choices[0] for part in chat(parallel_tool_calls=False)]
    pieces = [piece for part in parts for piece in part.delta.tool_calls or ()]
    assert "".join(piece.function.arguments for piece in pieces) == "".join(PIECES)
    assert {piece.index for piece in pieces} == {0}
    assert parts[-1].finish_reason == "tool_calls"


def test_openai_with_a_call_that_max_tokens_cuts_off(chat: Any) -> None:
    with saying(*CUT):
        parts = [part.choices[0] for part in chat()]
    pieces = [piece for part in parts for piece in part.delta.tool_calls or ()]
    assert "".join(piece.function.arguments for piece in pieces) == '{"city": '
    assert "".join(part.delta.content or "" for part in parts) == "<|tool_call>call:weather{city:"
    assert parts[-1].finish_reason == "length"


def test_anthropic(server: RunningServer) -> None:
    tools: Any = [{"name": "weather", "input_schema": {"type": "object"}}]
    options: Any = {"model": "demo", "messages": QUESTION, "max_tokens": 50, "tools": tools}
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        with saying(*STEPS), client.messages.stream(**options) as stream:
            events = list(stream)
            message = stream.get_final_message()
        with saying(*CUT), client.messages.stream(**options) as stream:
            cut = stream.get_final_message()
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert [one.partial_json for one in deltas if one.type == "input_json_delta"] == [*PIECES, "{", "}"]
    assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
    assert [(block.id, block.input) for block in message.content[1:]] == [
        (call.id, call.arguments) for call in (FIRST, SECOND)
    ]
    assert message.stop_reason == "tool_use"
    assert [block.type for block in cut.content] == ["tool_use", "text"]
    assert cut.stop_reason == "max_tokens"


def test_responses(server: RunningServer) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        options: Any = {"model": "demo", "input": "?", "tools": [{"type": "function", **FUNCTION}]}
        with saying(*STEPS):
            events = list(client.responses.create(stream=True, **options))
        with saying(*CUT):
            cut = list(client.responses.create(stream=True, **options))[-1].response
        base = "response.function_call_arguments"
        assert [event.delta for event in events if event.type == f"{base}.delta"] == [*PIECES, "{", "}"]
        done = [event.arguments for event in events if event.type == f"{base}.done"]
        items = events[-1].response.output
        assert done == [item.arguments for item in items[1:]] == ["".join(PIECES), "{}"]
        assert [item.type for item in items] == ["message", "function_call", "function_call"]
        assert [event.type for event in events if event.type == "response.output_item.done"] == [
            "response.output_item.done"
        ] * 3
        assert [(item.type, item.status) for item in cut.output] == [
            ("function_call", "incomplete"),
            ("message", "completed"),
        ]
        # If the client sends the unfinished call back, the next prompt does not contain it as a call.
        sent: Any = [item.model_dump(exclude_none=True) for item in cut.output]
        question: Any = {"role": "user", "content": "And?"}
        again = client.responses.create(model="demo", input=[*sent, question], max_output_tokens=2)
        assert again.output


def test_a_filter_checks_whole_calls(tmp_path: Any) -> None:
    """If the filter blocks a call, the client gets no piece of the call."""
    from gemlet.server.settings import Settings

    words = tmp_path / "words.txt"
    words.write_text("zürich\n")
    settings = Settings(filter_words=str(words), filter_replies="block")
    body: Any = {"messages": QUESTION, "tools": TOOLS, "stream": True}
    with serving(settings) as server, saying(*STEPS):
        said = server.post("/v1/chat/completions", body).body.decode()
    assert "content_filter" in said
    assert "weather" not in said
    assert '"city' not in said


@pytest.mark.extra("grammar")
def test_a_real_model(server: RunningServer) -> None:
    """With the same seed, the streamed call equals the call of a whole reply."""
    city = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
        "required": ["city"],
    }
    tools = [{"type": "function", "function": {**FUNCTION, "parameters": city}}]
    body: Any = {"messages": QUESTION, "tools": tools, "tool_choice": "required", "seed": 3, "max_tokens": 60}
    whole = server.post("/v1/chat/completions", body).json["choices"][0]["message"]["tool_calls"]
    lines = server.post("/v1/chat/completions", {**body, "stream": True}).body.split(b"\n\n")
    parts = [json.loads(line.removeprefix(b"data: ")) for line in lines if line[6:7] == b"{"]
    pieces = [one for part in parts for one in part["choices"][0]["delta"].get("tool_calls", ())]
    assert {one["index"] for one in pieces} == set(range(len(whole))) != set()
    for index, call in enumerate(whole):
        arguments = "".join(one["function"]["arguments"] for one in pieces if one["index"] == index)
        assert json.loads(arguments) == json.loads(call["function"]["arguments"])
