"""Tests of the nested objects that the official clients can send: parts, items, blocks and tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args
from unittest import mock

import pytest

from gemlet.chat import Content, Reasoning
from support.extras import optional
from support.scripted_streams import chunk, saying
from support.servers import RunningServer

anthropic, openai = optional("anthropic"), optional("openai")
optional("ollama")
pytestmark = [pytest.mark.extra("serve"), pytest.mark.extra("test-serve")]
CHAT = "/v1/chat/completions"
USER: Any = {"role": "user", "content": "Who?"}
F, G = ({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in "fg")


def fields_of(kind: Any, *path: str) -> Mapping[str, Any]:
    """The fields of the object at ``path`` in ``kind``."""
    for name in path:
        kind = kind[name] if isinstance(kind, Mapping) else kind.fields[name]
        while not hasattr(kind, "fields"):
            kind = kind.item if hasattr(kind, "item") else next(k for k in kind.kinds if hasattr(k, "fields"))
    fields: Mapping[str, Any] = kind.fields
    return fields


def names_of(*kinds: Any) -> set[str]:
    found: set[str] = set()
    for kind in kinds:
        members = get_args(kind)
        found |= names_of(*members) if members else set(kind.__annotations__)
    return found


def test_fields_at_lower_levels() -> None:
    import anthropic.types as anthropics
    import openai.types.chat as chats
    import openai.types.responses as responses
    from anthropic.types import beta
    from openai.types import shared_params

    from gemlet.server.anthropic_messages import MESSAGES
    from gemlet.server.openai_chat import CHAT
    from gemlet.server.openai_responses import RESPONSES

    known = [
        (fields_of(CHAT, "tools"), names_of(chats.ChatCompletionFunctionToolParam)),
        (fields_of(CHAT, "tools", "function"), names_of(shared_params.FunctionDefinition)),
        (fields_of(CHAT, "stream_options"), names_of(chats.ChatCompletionStreamOptionsParam)),
        (fields_of(RESPONSES, "reasoning"), names_of(shared_params.Reasoning)),
        (fields_of(RESPONSES, "text"), names_of(responses.ResponseTextConfigParam)),
        (fields_of(RESPONSES, "tools"), names_of(responses.FunctionToolParam) | {"async"}),
        (fields_of(RESPONSES, "tool_choice"), names_of(responses.ToolChoiceFunctionParam)),
        (fields_of(MESSAGES, "tools"), names_of(anthropics.ToolParam, beta.BetaToolParam)),
        (fields_of(MESSAGES, "tool_choice"), names_of(anthropics.ToolChoiceParam)),
        (
            fields_of(MESSAGES, "thinking"),
            names_of(anthropics.ThinkingConfigParam, beta.BetaThinkingConfigParam),
        ),
        (fields_of(MESSAGES, "output_config"), names_of(beta.BetaOutputConfigParam)),
        (fields_of(MESSAGES, "messages"), names_of(anthropics.MessageParam)),
    ]
    missing = [sorted(sent - table.keys()) for table, sent in known]
    assert not any(missing), missing


@pytest.mark.parametrize(
    "said",
    [
        {"content": [{"type": "refusal", "refusal": "No."}]},
        {"content": None, "refusal": "No."},
        {"content": "", "refusal": "No.", "audio": None},
        {"content": [{"type": "text", "text": "N"}, {"type": "refusal", "refusal": "o."}]},
    ],
)
def test_refusals_in_a_conversation(server: RunningServer, said: Any) -> None:
    """When a client sends a refusal of the model back, the refusal becomes a text of the model."""
    plain = {"messages": [USER, {"role": "assistant", "content": "No."}, USER]}
    sent = {"messages": [USER, {"role": "assistant", **said}, USER]}
    assert server.post("/tokenize", sent).json["tokens"] == server.post("/tokenize", plain).json["tokens"]


def test_refusals_in_items(server: RunningServer) -> None:
    def read(content: Any) -> int:
        items = [USER, {"type": "message", "role": "assistant", "content": content}, USER]
        answer = server.post("/v1/responses", {"input": items, "max_output_tokens": 1})
        return int(answer.json["usage"]["input_tokens"])

    assert read([{"type": "refusal", "refusal": "No, never."}]) == read("No, never.")
    half = {"type": "refusal", "refusal": 5}
    refused = server.post("/v1/responses", {"input": [{**USER, "content": [half]}]})
    assert refused.error["param"] == "input[0].content[0].refusal"


def test_a_sound_that_the_server_does_not_have(server: RunningServer) -> None:
    message = {"role": "assistant", "audio": {"id": "audio_1"}}
    refused = server.post(CHAT, {"messages": [USER, message, USER]})
    assert (refused.status, refused.error["param"]) == (400, "messages[1].audio")


# --- tools that the model may call --------------------------------------------------------------------------


def asked(server: RunningServer, path: str, body: Any) -> Any:
    """The internal request object that the server makes from the body."""
    from gemlet.server.ask import Ask

    found: list[Any] = []
    with saying(chunk(Content("Yes"), reason="stop")):
        begin = Ask.begin

        def noting(self: Any) -> Any:
            found.append(self)
            return begin(self)

        with mock.patch.object(Ask, "begin", noting):
            answer = server.post(path, body)
    assert answer.status == 200, answer.body
    return found[0]


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools(server: RunningServer, mode: str) -> None:
    choice: Any = {"mode": mode, "tools": [{"type": "function", "function": {"name": "g"}}]}
    body = {"messages": [USER], "tools": [F, G]}
    ask = asked(server, CHAT, {**body, "tool_choice": {"type": "allowed_tools", "allowed_tools": choice}})
    assert (ask.tools, ask.tool_choice) == ([G], mode)
    tools = [{"type": "function", **tool["function"]} for tool in (F, G)]  # type: ignore[dict-item]
    choice = {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "g"}]}
    ask = asked(server, "/v1/responses", {"input": "Who?", "tools": tools, "tool_choice": choice})
    assert [tool["function"]["name"] for tool in ask.tools] == ["g"]
    assert ask.tool_choice == mode


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        (
            {"mode": "auto", "tools": [{"type": "function", "function": {"name": "h"}}]},
            "there is no tool 'h'",
        ),
        ({"mode": "none", "tools": []}, "tool_choice.allowed_tools.mode"),
        ({"mode": "auto"}, "tools is missing"),
        ({"mode": "auto", "tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
        (5, "tool_choice.allowed_tools"),
        ({"mode": "required", "tools": []}, "no tools to call"),
    ],
)
def test_tools_that_cannot_be_allowed(server: RunningServer, allowed: Any, said: str) -> None:
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    refused = server.post(CHAT, {"messages": [USER], "tools": [F, G], "tool_choice": choice})
    assert refused.status == 400
    assert said in refused.error["message"]
    assert refused.error["param"].startswith("tool_choice")


# --- log probabilities of responses -------------------------------------------------------------------------

LOGPROBS = ["message.output_text.logprobs"]


def test_logprobs_of_responses(server: RunningServer) -> None:
    """The values equal those of chat completions, in whole and in streamed replies. They have the types of
    the official client."""
    said: Any = {"max_tokens": 12, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    reply = server.post(CHAT, {"messages": [USER], **said}).json["choices"][0]
    wanted = [
        (one["token"], one["logprob"], len(one["top_logprobs"])) for one in reply["logprobs"]["content"]
    ]
    options: Any = {"model": "demo", "input": "Who?", "max_output_tokens": 12, "temperature": 0}
    options |= {"include": LOGPROBS, "top_logprobs": 2}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        part = client.responses.create(**options).output[0].content[0]
        assert [(one.token, one.logprob, len(one.top_logprobs)) for one in part.logprobs] == wanted
        assert part.text == reply["message"]["content"]
        streamed: list[Any] = []
        for event in client.responses.create(**options, stream=True):
            if event.type == "response.output_text.delta":
                streamed += event.logprobs
            elif event.type == "response.output_text.done":
                assert len(event.logprobs) == len(wanted)
        done = event.response.output[0].content[0]
        assert [(one.token, one.logprob) for one in done.logprobs] == [one[:2] for one in wanted]
        assert [one.token for one in streamed] == [one[0] for one in wanted][: len(streamed)]
        assert len(streamed) >= len(wanted) - 1


def test_only_text_items_have_logprobs() -> None:
    from gemlet.server.response_items import OutputItems

    items = OutputItems()
    for event, token in ((Reasoning("Hm"), "Hm"), (Content("Y"), "Y"), (Content("es"), "es")):
        items.add_logprobs([{"token": token}])
        items.push(event)
    items.finish()
    assert [one["token"] for one in items.items[1]["content"][0]["logprobs"]] == ["Y", "es"]
    assert "logprobs" not in items.items[0]["content"][0]


def test_logprobs_of_responses_need_include(server: RunningServer) -> None:
    refused = server.post("/v1/responses", {"input": "Who?", "top_logprobs": 2})
    assert (refused.status, refused.error["param"]) == (400, "top_logprobs")
    refused = server.post("/v1/responses", {"input": "Who?", "top_logprobs": 21, "include": LOGPROBS})
    assert refused.status == 400
    part = server.post("/v1/responses", {"input": "Who?", "max_output_tokens": 2}).json["output"][0][
        "content"
    ][0]
    assert part["logprobs"] == []


# --- Anthropic's blocks -------------------------------------------------------------------------------------


def counted(server: RunningServer, *blocks: Any) -> Any:
    body = {"model": "demo", "messages": [{"role": "user", "content": list(blocks)}]}
    return server.post("/v1/messages/count_tokens", body)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (
            {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "A sea."}},
            "A sea.",
        ),
        (
            {
                "type": "document",
                "title": "Seas",
                "context": "An old book",
                "citations": {"enabled": False},
                "source": {"type": "content", "content": [{"type": "text", "text": "A sea."}]},
            },
            "Seas\nAn old book\nA sea.",
        ),
        (
            {
                "type": "search_result",
                "title": "Seas",
                "source": "https://sea",
                "content": [{"type": "text", "text": "A sea."}, {"type": "text", "text": "And a lake."}],
            },
            "Seas\nhttps://sea\nA sea.\nAnd a lake.",
        ),
    ],
)
def test_text_documents(server: RunningServer, block: Any, text: str) -> None:
    plain = counted(server, {"type": "text", "text": text}, {"type": "text", "text": "What is it?"})
    assert counted(server, block, {"type": "text", "text": "What is it?"}).json == plain.json
    ask = asked(
        server,
        "/v1/messages",
        {"model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": [block]}]},
    )
    assert ask.messages[0]["content"] == [{"type": "text", "text": text}]


@pytest.mark.parametrize(
    ("block", "param"),
    [
        ({"type": "document", "source": {"type": "base64", "data": "JVBERg=="}}, "source: the document"),
        ({"type": "document", "source": {"type": "file", "file_id": "x"}}, "source: the document"),
        ({"type": "document", "source": {"type": "text"}}, "source"),
        (
            {"type": "document", "source": {"type": "text", "data": "a"}, "citations": {"enabled": True}},
            "citations.enabled",
        ),
        ({"type": "document", "source": {"type": "text", "data": 5}}, "source.data"),
        (
            {"type": "search_result", "title": "a", "source": "b", "content": [{"type": "image"}]},
            "content[0]",
        ),
    ],
)
def test_documents_that_are_refused(server: RunningServer, block: Any, param: str) -> None:
    refused = counted(server, block)
    assert refused.status == 400
    assert refused.error["message"].startswith(f"messages[0].content[0].{param}")


def test_thoughts_between_tools(server: RunningServer) -> None:
    """The model thinks after it has the results of tools, and not before it calls the tools."""
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "5"}]}
    for said, thinks in (([USER], False), ([USER, call, result], True)):
        body: Any = {"model": "demo", "max_tokens": 2, "messages": said}
        assert (
            asked(server, "/v1/messages", {**body, "thinking": {"type": "between_tools"}}).thinking is thinks
        )
        assert asked(server, "/v1/messages", {**body, "thinking": {"type": "adaptive"}}).thinking
        assert not asked(server, "/v1/messages", {**body, "thinking": {"type": "disabled"}}).thinking


@pytest.mark.parametrize("think", [True, "low", "medium", "high", "max"])
def test_levels_of_ollama(server: RunningServer, think: Any) -> None:
    assert asked(server, "/api/chat", {"model": "demo", "messages": [USER], "think": think}).thinking
